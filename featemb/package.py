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

FORMAT = 2
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


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file, checked.

    Args:
        path: the file.
        kind: what the file must hold: "embedding" or "model".

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, corrupt, or holds
            something else.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise FormatError(
            f"{os.fspath(path)!r} is not a readable safetensors file: {error}"
        ) from error
    text = metadata.get(_KEY, "")
    inflated = _inflate(text, path)
    if metadata.get("checksum") != _checksum(text, tensors):
        raise FormatError(f"{os.fspath(path)!r} is corrupt: its checksum does not match")
    header: dict[str, Any] = json.loads(inflated)
    if header.get("format") != FORMAT:
        raise FormatError(
            f"{os.fspath(path)!r} has format {header.get('format')!r}, this version reads {FORMAT}"
        )
    held = header.get("kind", "embedding")
    if held != kind:
        raise FormatError(f"{os.fspath(path)!r} holds a {held!r}, not a {kind!r}; {_LOAD}")
    return header, tensors


_LOAD = "featemb.load reads embedding layers, featemb.models.load reads models"


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
