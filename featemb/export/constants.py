"""Tensors of compiled code, beside it in its archive: one entry, itself a safetensors file.

Code that holds its tensors has them in memory twice: as its file is mapped, and as its runtime
keeps them. Here they are read once, into memory that the runtime is lent.

What is no plain block of memory (a transposed weight, a part of another tensor) is kept as the flat
block that it spans; the entry's metadata ``views`` says shape and strides, by name.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from featemb.errors import ExportError, FormatError
from featemb.pages import empty

ENTRY = "data/weights/model.safetensors"
_PIECE = 1 << 20  # bytes that are read at a time
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def add(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to an archive that has no seal yet.

    Raises:
        ExportError: a tensor is of a type that is not kept.
    """
    from safetensors.torch import save_file

    blocks: dict[str, Tensor] = {}
    views = {}
    storages = set()
    for name, one in tensors.items():
        if one.dtype not in _DTYPES.values():
            raise ExportError(f"{name!r} is {one.dtype}; kept are {', '.join(_DTYPES)}")
        blocks[name] = one if one.is_contiguous() else _spanned(one)
        if not one.is_contiguous():
            views[name] = [list(one.shape), list(one.stride())]
        whole = one.untyped_storage()
        if whole.data_ptr() in storages or whole.nbytes() > blocks[name].nbytes:
            blocks[name] = blocks[name].clone()  # safetensors writes nothing that is shared
        storages.add(whole.data_ptr())
    beside = path.with_name("weights.safetensors")
    save_file(blocks, beside, {"views": json.dumps(views)})
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        made = zipfile.ZipInfo(f"{root}/{ENTRY}", (1980, 1, 1, 0, 0, 0))
        with archive.open(made, "w", force_zip64=True) as target, open(beside, "rb") as source:
            shutil.copyfileobj(source, target)
    beside.unlink()


def _spanned(one: Tensor) -> Tensor:
    """Return the flat block of memory from a tensor's first element to its last one."""
    last = sum((n - 1) * stride for n, stride in zip(one.shape, one.stride(), strict=True))
    return one.as_strided((last + 1 if one.numel() else 0,), (1,))


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a sealed archive; their bytes are in memory once at any moment.

    Raises:
        FormatError: the archive has none, or not as many bytes as it says.
    """
    with zipfile.ZipFile(path) as archive:
        entry = next((one for one in archive.namelist() if one.endswith("/" + ENTRY)), None)
        if entry is None:
            raise FormatError(f"{os.fspath(path)!r} holds no {ENTRY}: export it anew")
        with archive.open(entry) as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            views = json.loads(header.pop("__metadata__")["views"])
            told = sorted(header.items(), key=lambda one: one[1]["data_offsets"])
            found = {name: _filled(stream, one, path) for name, one in told}
    return found | {name: found[name].as_strided(*view) for name, view in views.items()}


def _filled(stream: IO[bytes], told: Mapping[str, Any], path: str | os.PathLike[str]) -> Tensor:
    tensor = empty(told["shape"], _DTYPES[told["dtype"]])
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data
    while rest:
        piece = stream.read(min(_PIECE, len(rest)))
        if not piece:
            raise FormatError(f"{os.fspath(path)!r} holds fewer bytes than it says")
        rest[: len(piece)] = piece
        rest = rest[len(piece) :]
    return tensor
