"""Two streamed passes: vocabularies from the training rows, then ids for all rows.

The encoded form is a folder: ``meta.json``, ``counts.npz`` and one Parquet file a split. It is made
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
import pyarrow.parquet as pq

from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.source import Source, require_columns
from featemb.datasets.vocabulary import Moments, Vocabulary, cells, count_rows, labels, numbers
from featemb.errors import DataError
from featemb.schema import Feature, Schema

FORMAT = 1
USER = "_user"
Parts = npt.NDArray[np.int8]


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        parts = _assign(source, recipe)
        vocabularies, moments = _first_pass(source, recipe, parts)
        _second_pass(source, recipe, parts, vocabularies, moments, private)
        _describe(recipe, vocabularies, meta, private)
        try:
            os.replace(private, folder)
        except OSError:  # another process was faster: its folder holds the same
            if not (folder / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _assign(source: Source, recipe: Recipe) -> Parts:
    """Return each row's part: 0 train, 1 valid, 2 test."""
    rule = recipe.split
    if rule.rule == "column":
        return _assign_by_column(source, recipe)
    rows = count_rows(source.batches())
    if rows < len(PARTS):
        raise DataError(f"the table has {rows} rows, at least {len(PARTS)} are needed")
    ends = [round(rows * sum(rule.fractions[: n + 1])) for n in range(2)]
    parts = np.repeat(np.array([0, 1, 2], np.int8), np.diff([0, *ends, rows]))
    if rule.rule == "order":
        return parts
    order = np.random.default_rng(rule.seed).permutation(rows)
    shuffled = np.empty_like(parts)
    shuffled[order] = parts
    return shuffled


def _assign_by_column(source: Source, recipe: Recipe) -> Parts:
    rule, chunks = recipe.split, []
    for batch in source.batches():
        require_columns(batch, [rule.column or ""], "split")
        values = batch.column(rule.column).cast(pa.string()).to_numpy(zero_copy_only=False)
        chunk = np.full(len(values), -1, np.int8)
        for number, part in enumerate(PARTS):
            if part in rule.values:
                chunk[values == rule.values[part]] = number
        if (chunk < 0).any():
            unknown = values[chunk < 0][0]
            raise DataError(
                f"split column {rule.column!r}: {unknown!r} is none of {dict(rule.values)}"
            )
        chunks.append(chunk)
    parts = np.concatenate(chunks) if chunks else np.empty(0, np.int8)
    if "valid" not in rule.values:
        train = np.flatnonzero(parts == 0)
        held = np.random.default_rng(rule.seed).permutation(len(train))
        parts[train[held[: round(len(train) * rule.valid_share)]]] = 1
    return parts


Vocabularies = dict[str, tuple[list[Any], npt.NDArray[np.int64]]]


def _first_pass(
    source: Source, recipe: Recipe, parts: Parts
) -> tuple[Vocabularies, dict[str, tuple[float, float]]]:
    words = {column.name: Vocabulary() for column in recipe.categorical}
    moments = {column.name: Moments() for column in recipe.numeric}
    for batch, part in _with_parts(source, parts):
        require_columns(batch, [c.name for c in recipe.columns] + [recipe.label], "the table")
        train = batch.filter(pa.array(part == 0))
        for column in recipe.categorical:
            words[column.name].add(cells(train, column)[0])
        for column in recipe.numeric:
            moments[column.name].add(numbers(train, column))
    closed = {c.name: words[c.name].close(recipe.threshold(c)) for c in recipe.categorical}
    return closed, {name: moment.close() for name, moment in moments.items()}


def _with_parts(source: Source, parts: Parts) -> Iterator[tuple[pa.RecordBatch, Parts]]:
    start = 0
    for batch in source.batches():
        yield batch, parts[start : start + batch.num_rows]
        start += batch.num_rows


def _second_pass(
    source: Source,
    recipe: Recipe,
    parts: Parts,
    vocabularies: Vocabularies,
    moments: Mapping[str, tuple[float, float]],
    folder: Path,
) -> None:
    known = {name: pa.array(values) for name, (values, _) in vocabularies.items() if values}
    writers: dict[int, pq.ParquetWriter] = {}
    positives = np.zeros((len(PARTS), 2), np.int64)
    try:
        for batch, part in _with_parts(source, parts):
            encoded = _encode_batch(batch, recipe, known, moments)
            for number in range(len(PARTS)):
                chosen = encoded.filter(pa.array(part == number))
                if number not in writers:
                    path = folder / f"{PARTS[number]}.parquet"
                    writers[number] = pq.ParquetWriter(path, encoded.schema, compression="zstd")
                writers[number].write_batch(chosen)
                label = chosen.column(recipe.label).to_numpy()
                positives[number] += np.bincount(label, minlength=2)
    finally:
        for writer in writers.values():
            writer.close()
    for number, name in enumerate(PARTS):
        if not positives[number].all():
            raise DataError(
                f"the {name} split has {positives[number, 0]} rows of label 0 and "
                f"{positives[number, 1]} of label 1; both are needed"
            )


def _encode_batch(
    batch: pa.RecordBatch,
    recipe: Recipe,
    known: Mapping[str, pa.Array],
    moments: Mapping[str, tuple[float, float]],
) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {}
    for column in recipe.categorical:
        values, lengths = cells(batch, column)
        ids = _ids(values, known.get(column.name))
        if lengths is not None:
            offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy())]).astype(np.int32)
            columns[column.name] = pa.ListArray.from_arrays(offsets, ids)
        else:
            columns[column.name] = ids
    for column in recipe.numeric:
        mean, deviation = moments[column.name]
        scaled = (numbers(batch, column) - mean) / deviation
        columns[column.name] = pa.array(np.nan_to_num(scaled, nan=0.0).astype(np.float32))
    columns[recipe.label] = pa.array(labels(batch, recipe.label))
    return pa.RecordBatch.from_pydict(columns)


def _ids(values: pa.Array, known: pa.Array | None) -> pa.Array:
    if known is None:
        return pa.array(np.zeros(len(values), np.int32))
    found = pc.index_in(values, value_set=known.cast(values.type), skip_nulls=True)
    return pc.add(pc.fill_null(found, -1), pa.scalar(1, pa.int32()))


def _describe(
    recipe: Recipe, vocabularies: Vocabularies, meta: Mapping[str, Any], folder: Path
) -> None:
    features = [
        Feature(c.name, len(vocabularies[c.name][1]), multi=c.multi, pooling=c.pooling)
        if c.multi
        else Feature(c.name, len(vocabularies[c.name][1]))
        for c in recipe.categorical
    ]
    schema = Schema(features, [column.name for column in recipe.numeric])
    counts: dict[str, Any] = {name: counts for name, (_, counts) in vocabularies.items()}
    np.savez(folder / "counts.npz", **counts)
    digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    document = {
        "format": FORMAT,
        "schema": json.loads(schema.to_json()),
        "recipe": json.loads(recipe.to_json()),
        "files": digests,
        "meta": dict(meta),
    }
    (folder / "meta.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
