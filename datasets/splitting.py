"""Which row goes into which split: one streamed pass, at most 17 bytes a row in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.source import Source, require_columns
from featemb.datasets.vocabulary import count_rows
from featemb.errors import DataError

Parts = npt.NDArray[np.int8]


def assign(source: Source, recipe: Recipe) -> Parts:
    """Return each row's part: 0 train, 1 valid, 2 test.

    Raises:
        DataError: there are fewer rows than parts, or the split's column is missing, has missing
            cells or holds a value that the rule does not name.
    """
    rule = recipe.split
    if rule.rule == "column":
        return _by_column(source, recipe)
    if rule.rule == "time":
        found = times(source, rule.column or "")
        order: npt.NDArray[np.int64] | None = np.argsort(found, kind="stable")
        rows = len(found)
    else:
        rows = count_rows(source.batches())
        random = rule.rule == "random"
        order = np.random.default_rng(rule.seed).permutation(rows) if random else None
    parts = _cut(rows, rule.fractions)
    if order is None:
        return parts
    placed = np.empty_like(parts)
    placed[order] = parts
    return placed


def _cut(rows: int, fractions: tuple[float, ...]) -> Parts:
    """Parts of rows that lie in order: each boundary is rounded, and each part gets a row."""
    if rows < len(PARTS):
        raise DataError(f"the table has {rows} rows, at least {len(PARTS)} are needed")
    first = min(max(1, round(rows * fractions[0])), rows - 2)
    second = min(max(first + 1, round(rows * (fractions[0] + fractions[1]))), rows - 1)
    return np.repeat(np.array([0, 1, 2], np.int8), np.diff([0, first, second, rows]))


def times(source: Source, name: str) -> npt.NDArray[np.float64 | np.int64]:
    """Return a column as numbers that order the rows.

    Raises:
        DataError: a cell is missing, or the column has no order.
    """
    chunks = []
    for batch in source.batches():
        require_columns(batch, [name], "split")
        array = batch.column(name)
        if array.null_count:
            raise DataError(f"time column {name!r}: {array.null_count} values are missing")
        try:
            kind = array.type
            if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
                array = array.cast(pa.float64())
            elif pa.types.is_date32(kind) or pa.types.is_time32(kind):
                array = array.cast(pa.int32()).cast(pa.int64())
            else:
                array = array.cast(pa.int64())
        except pa.ArrowException as error:
            raise DataError(f"time column {name!r} has no order: {error}") from error
        chunks.append(array.to_numpy(zero_copy_only=False))
    found = np.concatenate(chunks) if chunks else np.empty(0, np.int64)
    if np.isnan(found).any():
        raise DataError(f"time column {name!r}: {int(np.isnan(found).sum())} values are missing")
    return found


def _by_column(source: Source, recipe: Recipe) -> Parts:
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
