"""`load`: any file of featemb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from featemb import kinds, package
from featemb.delta import KIND
from featemb.errors import FormatError
from featemb.export.checking import load_artefact, target_of
from featemb.schema import Schema


def load(path: str | os.PathLike[str], device: Any = "cpu", *, schema: Schema | None = None) -> Any:
    """Load a file that featemb wrote.

    Args:
        path: the file.
        device: of a layer or model; exported files are for the CPU.
        schema: what the caller will feed; a file of another schema is refused.

    Returns:
        Of `featemb.export`: an `Artefact`, called with ids, or by its ``raw`` with raw rows. Of
        ``FrozenEmbedding.save`` and ``models.save``: the layer or model itself.

    Raises:
        FormatError: the file is missing, cut short, corrupt, of a newer version, or another one, or
            its schema is not the one asked for.
    """
    found = _load(path, device)
    own = getattr(found, "schema", None) or found.embedding.schema
    if schema is not None and own != schema.without_counts():
        raise FormatError(
            f"{os.fspath(path)!r} is of another schema: it has {own.to_json()}, asked for is "
            f"{schema.without_counts().to_json()}"
        )
    return found


def _load(path: str | os.PathLike[str], device: Any) -> Any:
    if target_of(Path(path)) != "safetensors" or "artefact" in package.header_of(path):
        return load_artefact(path)
    header, tensors = package.read(path)
    if header["kind"] == KIND:
        raise FormatError(
            f"{os.fspath(path)!r} holds a {KIND!r}: featemb.apply_delta applies it to a package"
        )
    module: nn.Module = kinds.find(header["kind"]).rebuild(header, tensors)
    return module.to(device)
