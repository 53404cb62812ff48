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
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featemb.errors import FormatError
from featemb.files import replacing
from featemb.pages import empty

FORMAT = 3
_READ = (2, 3)  # 3 may hold an encoder and examples besides (see featemb.export)
BESIDE = "featemb."  # begins the names of tensors that are not the module's
_KEY = "featemb"


class Package(NamedTuple):
    """A file's content.

    Attributes:
        text: the header as it is written in the file.
        header: the header.
        tensors: by name.
        checksum: of both, 32 hexadecimal digits: what names the content.
    """

    text: str
    header: dict[str, Any]
    tensors: dict[str, Tensor]
    checksum: str

    @property
    def kind(self) -> str:
        """What the file holds: "embedding", "model" or another."""
        return str(self.header["kind"])

    @classmethod
    def of(cls, text: str, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> Package:
        """Return what a header's text and tensors make; nothing is written.

        Args:
            text: the header.
            tensors: by name; they are brought to the CPU where they are elsewhere.
            path: what is named in errors.

        Raises:
            FormatError: the text is no header, or one of another version.
        """
        held = _on_cpu(tensors)
        return cls(text, header(text, path), held, _checksum(text, held))


def write(
    path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a header and tensors to one file, atomically; an existing one is replaced whole.

    Raises:
        FormatError: the target's folder does not exist.
    """
    full = {"format": FORMAT, **header}
    text = _deflate(json.dumps(full, separators=(",", ":")))
    held = _on_cpu(tensors)
    put(path, Package(text, full, held, _checksum(text, held)))


def put(path: str | os.PathLike[str], content: Package) -> None:
    """Write a package as it is, atomically: equal content gives equal files.

    Raises:
        FormatError: the target's folder does not exist.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(content.tensors, temporary, {_KEY: content.text, "checksum": content.checksum})
        _order(temporary)


def _order(path: Path) -> None:
    """Bring the metadata of a file into one order: safetensors writes it in any."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def read(
    path: str | os.PathLike[str], kind: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file, checked.

    Args:
        path: the file.
        kind: what the file must hold: "embedding", "model" or another; None takes any.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, corrupt, or holds
            something else.
    """
    found = read_any(path)
    if kind is not None and found.kind != kind:
        raise FormatError(f"{os.fspath(path)!r} holds a {found.kind!r}, not a {kind!r}; {_LOAD}")
    return found.header, found.tensors


def read_any(path: str | os.PathLike[str]) -> Package:
    """Return the content of a file of any kind, checked.

    The tensors are in memory of their own: what happens to the file afterwards is nothing to them.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, or corrupt.
    """
    from safetensors import SafetensorError

    _check_file(path)
    try:
        metadata, tensors = _contents(path)
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    text = metadata.get(_KEY, "")
    _inflate(text, path)
    found = _checksum(text, tensors)
    if metadata.get("checksum") != found:
        raise FormatError(f"{os.fspath(path)!r} is corrupt: its checksum does not match")
    return Package(text, header(text, path), tensors, found)


def header_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a file; its tensors are not checked.

    Raises:
        FormatError: the file is missing, not of this format, or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY, "")
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    return header(text, path)


def header(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a header of its text.

    Raises:
        FormatError: the text is no header, or one of another version; names the path.
    """
    try:
        found: dict[str, Any] = json.loads(_inflate(text, path))
    except json.JSONDecodeError as error:
        raise FormatError(f"{os.fspath(path)!r} has no readable featemb header") from error
    if found.get("format") not in _READ:
        raise FormatError(
            f"{os.fspath(path)!r} has format {found.get('format')!r}, this version reads "
            f"{_READ[0]} to {_READ[-1]}"
        )
    return {"kind": "embedding", **found}


def own(tensors: Mapping[str, Tensor], prefix: str = BESIDE) -> dict[str, Tensor]:
    """Return the tensors of the module itself, without what an export keeps beside it."""
    return {name: one for name, one in tensors.items() if not name.startswith(prefix)}


def _check_file(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")


def _unreadable(path: str | os.PathLike[str], error: Exception) -> FormatError:
    return FormatError(f"{os.fspath(path)!r} is not a readable safetensors file: {error}")


def _contents(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a file's metadata and tensors, which are held in memory once at any moment."""
    from safetensors import safe_open

    with (
        open(path, "rb", buffering=0) as raw,
        safe_open(os.fspath(path), framework="pt", device="cpu") as file,
    ):
        if not os.path.samestat(os.fstat(raw.fileno()), os.stat(path)):
            return _contents(path)  # replaced between the two
        raw.seek(8 + int.from_bytes(raw.read(8), "little"))
        tensors = {}
        for name in file.offset_keys():  # all bytes behind the header are theirs, in this order
            mapped = file.get_tensor(name)  # says dtype and shape; none of its pages is touched
            tensors[name] = _filled(empty(mapped.shape, mapped.dtype), raw, path)
        return file.metadata() or {}, tensors


def _filled(tensor: Tensor, raw: FileIO, path: str | os.PathLike[str]) -> Tensor:
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data
    while rest:
        count = raw.readinto(rest)
        if not count:
            raise FormatError(f"{os.fspath(path)!r} became shorter while it was read")
        rest = rest[count:]
    return tensor


_LOAD = (
    "featemb.load reads layers and models, featemb.apply_delta applies deltas, "
    "featemb.load_converted reads converted models of other libraries"
)


def _deflate(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _inflate(text: str, path: str | os.PathLike[str]) -> str:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (ValueError, zlib.error) as error:
        raise FormatError(f"{os.fspath(path)!r} has no readable featemb header") from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.detach().cpu().contiguous() for name, one in tensors.items()}


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the checksum of a header's text and tensors on the CPU, contiguous."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
