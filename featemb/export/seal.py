"""Seals: a checksum at the end of a file that other programs read too.

A ``.pt2`` is a zip archive: its seal is the archive's comment. An ONNX file is a protobuf message,
and bytes behind it are merged into it: its seal is one more entry of the model's metadata. Both end
in 32 hex digits, BLAKE2b (128 bits) of all bytes before the seal. Other readers ignore them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

from featemb.errors import FormatError

_LABEL = b"featemb-blake2b-128:"
_DIGITS = 32
_COMMENT = _LABEL + b"0" * _DIGITS
_END = b"PK\x05\x06"  # of a zip archive without a comment: 22 bytes, the last two the comment's
_END_BYTES = 22


def seal_zip(path: Path) -> None:
    """Seal a zip archive.

    Raises:
        FormatError: it has a comment already, or is none.
    """
    with open(path, "r+b") as file:
        file.seek(-_END_BYTES, os.SEEK_END)
        if file.read(len(_END)) != _END:
            raise FormatError(f"{os.fspath(path)!r} is no zip archive without a comment")
        file.seek(-2, os.SEEK_END)
        file.write(len(_COMMENT).to_bytes(2, "little"))
    _append(path, _LABEL)


def seal_onnx(path: Path) -> None:
    """Seal an ONNX file."""
    _append(path, _onnx_label())


def _onnx_label() -> bytes:
    """Return the entry ``metadata_props {key: "featemb-seal" value: LABEL + digits}``, cut off."""
    key, value = b"featemb-seal", len(_LABEL) + _DIGITS
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([value]) + _LABEL
    return b"\x72" + bytes([len(entry) + _DIGITS]) + entry  # field 14 of a ModelProto


def _append(path: Path, label: bytes) -> None:
    seal = label + digest(path, path.stat().st_size).encode()
    with open(path, "ab") as file:
        file.write(seal)


def digest(path: str | os.PathLike[str], size: int) -> str:
    """Return BLAKE2b (128 bits) of a file's first bytes, in hex; read in pieces."""
    state = hashlib.blake2b(digest_size=_DIGITS // 2)
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    with open(path, "rb") as file:
        while size > 0:
            got = file.readinto(view[: min(size, len(buffer))])
            if not got:
                break
            state.update(view[:got])
            size -= got
    return state.hexdigest()


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends in a seal, a right one or not."""
    return _tail(path)[:-_DIGITS].endswith(_LABEL)


def check(path: str | os.PathLike[str]) -> None:
    """Refuse a file whose seal is missing or wrong.

    Raises:
        FormatError: it is missing, cut short, corrupt, or not written by featemb.
    """
    tail = _tail(path)
    name = repr(os.fspath(path))
    if not tail[:-_DIGITS].endswith(_LABEL):
        raise FormatError(f"{name} has no seal of featemb at its end: cut short, or another file")
    onnx = _onnx_label()
    label = onnx if tail[:-_DIGITS].endswith(onnx) else _LABEL
    size = Path(path).stat().st_size - len(label) - _DIGITS
    if digest(path, size) != tail[-_DIGITS:].decode("latin1"):
        raise FormatError(f"{name} is corrupt: its checksum does not match")


def _tail(path: str | os.PathLike[str]) -> bytes:
    if not Path(path).is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(-min(file.tell(), 256), os.SEEK_END)
        return file.read()


def entry(path: str | os.PathLike[str], name: str) -> bytes:
    """Return a file of a zip archive by the end of its name.

    Raises:
        FormatError: there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for found in archive.namelist():
                if found.endswith(name):
                    return archive.read(found)
    except zipfile.BadZipFile as error:
        raise FormatError(f"{os.fspath(path)!r} is no readable archive: {error}") from error
    raise FormatError(f"{os.fspath(path)!r} holds no {name}: not written by featemb")
