"""`FrozenEmbedding`: the deployable form of a layer, and its file format.

A frozen layer holds buffers only and is made of parts; it needs neither the method's
configuration nor an optimizer. Its file is a safetensors file: tensors, and a header with the
format version, the schema, the tree of parts and a checksum. Nothing is unpickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb.base import SourceEmbedding
from featemb.config import discover
from featemb.errors import FormatError
from featemb.files import replacing
from featemb.memory import Memory, module_bytes
from featemb.parts import Part, Source
from featemb.schema import Schema

FORMAT = 2
_KEY = "featemb"


class FrozenEmbedding(SourceEmbedding):
    """A layer of buffers only; called exactly as the layer that it was frozen from.

    Args:
        schema: the features (their training counts are dropped).
        dim: output width asked for.
        widths: output width of each feature.
        source: the part that maps (ids, feature) to vectors.
    """

    def __init__(self, schema: Schema, dim: int, widths: Sequence[int], source: Source) -> None:
        super().__init__(schema.without_counts(), dim, widths)
        self.source = source

    def memory(self) -> Memory:
        """Bytes by part of the tensors that the layer holds."""
        return Memory(module_bytes(self), {})

    @torch.no_grad()
    def narrowed(self) -> FrozenEmbedding:
        """Return the layer without the columns that are zero for every id, by features.

        It shares this layer's tensors. A layer that uses all of its columns is returned itself.
        """
        used = self.source.used_widths(len(self.widths), max(self.widths))
        widths = tuple(min(pair) for pair in zip(self.widths, used, strict=True))
        if widths == self.widths:
            return self
        narrow = FrozenEmbedding(self.schema, self.dim, widths, self.source)
        return narrow.train(self.training)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to one file, atomically.

        Args:
            path: target; an existing file is replaced only by a complete new one.

        Raises:
            FormatError: the target's folder does not exist.
        """
        from safetensors.torch import save_file

        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        header = {
            "format": FORMAT,
            "schema": json.loads(self.schema.to_json()),
            "dim": self.dim,
            "widths": self.widths,
            "source": self.source.describe(),
        }
        text = _deflate(json.dumps(header, separators=(",", ":")))
        metadata = {_KEY: text, "checksum": _checksum(text, tensors)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> FrozenEmbedding:
    """Read a layer that `FrozenEmbedding.save` wrote.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version or corrupt.
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
    header = json.loads(inflated)
    if header.get("format") != FORMAT:
        raise FormatError(
            f"{os.fspath(path)!r} has format {header.get('format')!r}, this version reads {FORMAT}"
        )
    return _rebuild(header, tensors).to(device).eval()


def _rebuild(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FrozenEmbedding:
    discover()  # parts are defined beside the methods and codecs that make them
    schema = Schema.from_json(json.dumps(header["schema"]))
    source = Part.rebuild(header["source"], tensors, prefix="source.")
    if not isinstance(source, Source):
        raise FormatError(f"a {type(source).__name__} is no source of vectors")
    return FrozenEmbedding(schema, header["dim"], header["widths"], source)


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
