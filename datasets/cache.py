"""Where encoded data live, and how they come back into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from featemb.datasets.dataset import Bag, Dataset, Split
from featemb.datasets.encode import FORMAT, GROUP, checksum, encode, file_digest
from featemb.datasets.encoding import Encoding
from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.source import Source
from featemb.errors import DataError
from featemb.schema import Schema


def cache_root(cache: str | os.PathLike[str] | None) -> Path:
    """Return the folder of encoded data: given, $FEATEMB_CACHE, or ~/.cache/featemb."""
    given = cache or os.environ.get("FEATEMB_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "featemb"


def encoded(
    name: str,
    source: Source,
    recipe: Recipe,
    cache: str | os.PathLike[str] | None,
    meta: Mapping[str, Any],
) -> Dataset:
    """Return a data set from the cache, encoding it first where needed.

    A cached folder whose files do not match their checksums is made anew.

    Raises:
        DataError: the source does not fit the recipe.
    """
    key = f"{FORMAT} {recipe.to_json()} {source.fingerprint()}"
    folder = cache_root(cache) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not _intact(folder):
        if folder.exists() and not _intact(folder):  # unless another process has just made it
            _set_aside(folder)
        encode(source, recipe, folder, meta)
    return read(name, folder)


def _set_aside(folder: Path) -> None:
    """Remove a corrupt folder; its name is free at once, so that nobody sees half of it."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.corrupt."))
    try:
        os.replace(folder, aside / folder.name)
    except FileNotFoundError:
        pass  # another process has moved it
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _intact(folder: Path) -> bool:
    """Whether an encoded folder is there and its files match their checksums."""
    try:
        document = json.loads((folder / "meta.json").read_text("utf-8"))
        if document.pop("checksum") != checksum(document):
            return False
        files: Mapping[str, str] = document["files"]
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    paths = {folder / name: digest for name, digest in files.items()}
    return all(path.is_file() and file_digest(path) == digest for path, digest in paths.items())


def read(name: str, folder: Path) -> Dataset:
    """Read an encoded folder into memory.

    Raises:
        DataError: the folder is none, or of another format version.
    """
    try:
        document = json.loads((folder / "meta.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{str(folder)!r} holds no encoded data: {error}") from error
    if document.get("format") != FORMAT:
        raise DataError(f"{str(folder)!r} has format {document.get('format')!r}, not {FORMAT}")
    schema = Schema.from_json(json.dumps(document["schema"]))
    with np.load(folder / "counts.npz", allow_pickle=False) as counts:
        schema = schema.with_counts({feature: counts[feature] for feature in counts.files})
    recipe = Recipe.from_json(json.dumps(document["recipe"]))
    splits = {part: _split(folder / f"{part}.parquet", schema, recipe) for part in PARTS}
    encoding = Encoding.read(folder, recipe, document["moments"])
    meta = document["meta"] | {"user": recipe.user, "recipe": document["recipe"]}
    return Dataset(name, schema, splits, document["fingerprint"], meta, encoding)


def _split(path: Path, schema: Schema, recipe: Recipe) -> Split:
    """Read one split, a row group at a time, into tensors that are made once."""
    with pq.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        label = torch.empty(rows)
        numeric = torch.empty(rows, len(schema.numeric)) if schema.numeric else None
        user = None if recipe.user is None else torch.empty(rows, dtype=torch.int64)
        single = schema.single_valued
        kind = torch.int32 if recipe.hashing is None else torch.int64
        ids = torch.empty(rows, schema.num_features, dtype=kind) if single else None
        bags: list[list[tuple[Tensor, Tensor]]] = [[] for _ in schema.features]
        start = 0
        for batch in file.iter_batches():
            piece = slice(start, start + batch.num_rows)
            start = piece.stop
            label[piece] = _tensor(batch.column(recipe.label)).float()
            if user is not None:
                user[piece] = _tensor(batch.column(GROUP))
            for position, name in enumerate(schema.numeric):
                assert numeric is not None
                numeric[piece, position] = _tensor(batch.column(name))
            for position, name in enumerate(schema.names):
                if ids is not None:
                    ids[piece, position] = _tensor(batch.column(name))
                else:
                    bags[position].append(_bag(batch.column(name)))
    if ids is not None:
        return Split(label, ids, (), numeric, user)
    return Split(label, None, [_join(pieces) for pieces in bags], numeric, user)


def _tensor(column: pa.Array) -> Tensor:
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())


def _bag(column: pa.Array) -> tuple[Tensor, Tensor]:
    """Return the values int32 and lengths int64 of one feature's cells."""
    if pa.types.is_list(column.type):
        return _tensor(column.flatten()), _tensor(pc.list_value_length(column)).long()
    values = _tensor(column)
    return values, torch.ones(len(values), dtype=torch.int64)


def _join(pieces: list[tuple[Tensor, Tensor]]) -> Bag:
    values, lengths = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
    return Bag(values, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))
