"""Two streamed passes: vocabularies from the training rows, then ids for all rows.

The encoded form is a folder: ``meta.json``, ``counts.npz``, ``vocabulary.arrow`` and one Parquet
file a split. It is made
in a private folder beside its place and moved there whole, so that a reader sees all of it or
nothing, and of several processes that encode the same data the first one wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.encoding import Encoding
from featemb.datasets.recipe import PARTS, Column, Recipe
from featemb.datasets.shards import Shards
from featemb.datasets.source import Source, require_columns
from featemb.datasets.splitting import Parts, assign
from featemb.datasets.vocabulary import Moments, Vocabulary, cells, labels, numbers
from featemb.errors import DataError
from featemb.schema import Feature, Schema

FORMAT = 4
GROUP = "__group__"  # the column of user codes; no feature may have this name
_MISSING_GROUP = -1


def encode(source: Source, recipe: Recipe, folder: Path, meta: Mapping[str, Any]) -> None:
    """Encode a source into a folder.

    Args:
        source: the rows.
        recipe: what to do with them.
        folder: where the encoded form goes; an existing one is left alone.
        meta: facts to keep in ``meta.json``.

    Raises:
        DataError: the source does not fit the recipe, or has no rows or only one label.
    """
    if GROUP in [column.name for column in recipe.columns]:
        raise DataError(f"no column may be named {GROUP!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        parts = assign(source, recipe)
        encoding, counts = _first_pass(source, recipe, parts)
        shards = Shards(private, recipe)
        _second_pass(source, encoding, parts, shards)
        encoding.save(private)
        _describe(encoding, counts, shards, meta, private)
        try:
            os.replace(private, folder)
        except OSError:  # another process was faster: its folder holds the same
            if not (folder / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


Counts = dict[str, npt.NDArray[np.int64]]


def _first_pass(source: Source, recipe: Recipe, parts: Parts) -> tuple[Encoding, Counts]:
    words = {column.name: Vocabulary() for column in recipe.categorical}
    moments = {column.name: Moments() for column in recipe.numeric}
    kinds: dict[str, pa.DataType] = {}
    for batch, part in _with_parts(source, parts):
        needed = [*(column.name for column in recipe.columns), recipe.label]
        require_columns(batch, [*needed, *([recipe.user] if recipe.user else [])], "the table")
        train = batch.filter(pa.array(part == 0))
        for column in recipe.categorical:
            found = cells(train, column)[0]
            kinds[column.name] = found.type
            if recipe.hashing is None:
                words[column.name].add(found)
        for column in recipe.numeric:
            moments[column.name].add(numbers(train, column))
    closed: dict[str, tuple[list[Any], npt.NDArray[np.int64]]] = {}
    if recipe.hashing is None:
        closed = {c.name: words[c.name].close(recipe.threshold(c)) for c in recipe.categorical}
    encoding = Encoding(
        recipe,
        {c.name: pa.array(closed.get(c.name, ([],))[0], kinds[c.name]) for c in recipe.categorical},
        {name: moment.close() for name, moment in moments.items()},
    )
    return encoding, {name: counts for name, (_, counts) in closed.items()}


def _with_parts(source: Source, parts: Parts) -> Iterator[tuple[pa.RecordBatch, Parts]]:
    start = 0
    for batch in source.batches():
        yield batch, parts[start : start + batch.num_rows]
        start += batch.num_rows


def _second_pass(source: Source, encoding: Encoding, parts: Parts, shards: Shards) -> None:
    groups: dict[Any, int] = {}
    start = 0
    with shards:
        for batch, part in _with_parts(source, parts):
            encoded = _encode_batch(batch, encoding, groups, start)
            shards.write(encoded, part)
            start += batch.num_rows
    for number, name in enumerate(PARTS):
        if not shards.labels[number].all():
            raise DataError(
                f"the {name} split has {shards.labels[number, 0]} rows of label 0 and "
                f"{shards.labels[number, 1]} of label 1; both are needed"
            )


def _encode_batch(
    batch: pa.RecordBatch, encoding: Encoding, groups: dict[Any, int], start: int
) -> pa.RecordBatch:
    recipe = encoding.recipe
    columns = encoding.columns(batch)
    columns[recipe.label] = pa.array(labels(batch, recipe.label, start))
    if recipe.user is not None:
        columns[GROUP] = _groups(cells(batch, Column(name=recipe.user))[0], groups)
    return pa.RecordBatch.from_pydict(columns)


def _groups(values: pa.Array, groups: dict[Any, int]) -> pa.Array:
    """Number the users in the order they come: unknown ones too, which all share id 0."""
    unique = pc.dictionary_encode(values)
    codes = [groups.setdefault(value, len(groups)) for value in unique.dictionary.to_pylist()]
    codes.append(_MISSING_GROUP)
    places = pc.fill_null(unique.indices, len(codes) - 1).to_numpy()
    return pa.array(np.array(codes, np.int64)[places])


def _describe(
    encoding: Encoding, counts: Counts, shards: Shards, meta: Mapping[str, Any], folder: Path
) -> None:
    recipe, columns = encoding.recipe, encoding.recipe.categorical
    hashing = recipe.hashing
    sizes = {c.name: len(counts[c.name]) if hashing is None else hashing.size for c in columns}
    features = [
        Feature(
            c.name,
            sizes[c.name],
            multi=True,
            pooling=c.pooling,
            max_length=shards.longest.get(c.name) or None,
        )
        if c.multi
        else Feature(c.name, sizes[c.name])
        for c in columns
    ]
    schema = Schema(features, [column.name for column in recipe.numeric])
    arrays: dict[str, Any] = dict(counts)
    np.savez(folder / "counts.npz", **arrays)
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    document = {
        "format": FORMAT,
        "schema": json.loads(schema.to_json()),
        "recipe": json.loads(recipe.to_json()),
        "moments": encoding.moments,
        "fingerprint": shards.fingerprint(schema),
        "files": digests,
        "meta": dict(meta),
    }
    document["checksum"] = checksum(document)
    with (folder / "meta.json").open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False))
        file.flush()
        os.fsync(file.fileno())


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` holds beside its checksum."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
