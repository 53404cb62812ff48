"""Packages: safetensors files with a header of ours, a checksum and a version; nothing unpickled.

The metadata of the safetensors file holds two texts: ``featemb``, the header (JSON, deflated, in
base64), and ``checksum``, BLAKE2b (128 bits) of the header's text and of every tensor's name, type,
shape and bytes, in the order of the names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb.errors import FormatError
from featemb.files import replacing

FORMAT = 3
_READ = (2, 3)  # 3 may hold an encoder and examples besides (see featemb.export)
BESIDE = "featemb."  # begins the names of tensors that are not the module's
_KEY = "featemb"


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a header and tensors to one file, atomically; an existing one is replaced whole.

    Raises:
        FormatError: the target's folder does not exist.
    """
    from safetensors.torch import save_file

    held = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    text = _deflate(json.dumps({"format": FORMAT, **header}, separators=(",", ":")))
    metadata = {_KEY: text, "checksum": _checksum(text, held)}
    with replacing(path) as temporary:
        save_file(held, temporary, metadata)


def read(
    path: str | os.PathLike[str], kind: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file, checked.

    The tensors are mapped from the file: what is never read takes no memory.

    Args:
        path: the file.
        kind: what the file must hold: "embedding" or "model"; None takes either.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, corrupt, or holds
            something else.
    """
    from safetensors import SafetensorError, safe_open

    text, inflated = _header_text(path)
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checksum = (file.metadata() or {}).get("checksum")
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    if checksum != _checksum(text, tensors):
        raise FormatError(f"{os.fspath(path)!r} is corrupt: its checksum does not match")
    header = _checked_header(inflated, path)
    if kind is not None and header["kind"] != kind:
        raise FormatError(
            f"{os.fspath(path)!r} holds a {header['kind']!r}, not a {kind!r}; {_LOAD}"
        )
    return header, tensors


def header_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a file; its tensors are not checked.

    Raises:
        FormatError: the file is missing, not of this format, or of a newer version.
    """
    return _checked_header(_header_text(path)[1], path)


def _header_text(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the header as it is stored, and as JSON text."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY, "")
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    return text, _inflate(text, path)


def _unreadable(path: str | os.PathLike[str], error: Exception) -> FormatError:
    return FormatError(f"{os.fspath(path)!r} is not a readable safetensors file: {error}")


def _checked_header(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{os.fspath(path)!r} has no readable featemb header") from error
    if header.get("format") not in _READ:
        raise FormatError(
            f"{os.fspath(path)!r} has format {header.get('format')!r}, this version reads "
            f"{_READ[0]} to {_READ[-1]}"
        )
    return {"kind": "embedding", **header}


def own(tensors: Mapping[str, Tensor], prefix: str = BESIDE) -> dict[str, Tensor]:
    """Return the tensors of the module itself, without what an export keeps beside it."""
    return {name: one for name, one in tensors.items() if not name.startswith(prefix)}


_LOAD = "featemb.load reads both"


def _deflate(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _inflate(text: str, path: str | os.PathLike[str]) -> str:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (ValueError, zlib.error) as error:
        raise FormatError(f"{os.fspath(path)!r} has no readable featemb header") from error


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
