"""First pass: vocabularies, counts and numeric statistics of the training rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.recipe import Column
from featemb.errors import DataError


def cells(batch: pa.RecordBatch, column: Column) -> tuple[pa.Array, pa.Array | None]:
    """Return a categorical column's values, and its list lengths if it is multi.

    Values are int64, float64 or text; a missing cell, an empty text and NaN are null. A missing
    list, or a text without values, counts as an empty list.

    Raises:
        DataError: the column's type is not supported.
    """
    array = batch.column(column.name)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    lengths, separated = None, False
    if column.multi:
        if column.separator is not None:
            array = pc.split_pattern(plain(array, column.name), column.separator)
            separated = True
        elif not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise DataError(
                f"column {column.name!r} is multi-valued but holds {array.type}: "
                "give lists, or a separator"
            )
        lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
        array = pc.list_flatten(array)
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
    return plain(pc.utf8_trim_whitespace(array) if separated else array, column.name), lengths


def plain(array: pa.Array, name: str) -> pa.Array:
    """Bring values to int64, float64 or text; whatever means missing becomes null.

    Raises:
        DataError: the values of column ``name`` are of a type that is not supported.
    """
    kind = array.type
    if pa.types.is_nested(kind) or (pa.types.is_null(kind) and len(array) > array.null_count):
        raise DataError(f"column {name!r} holds {kind}, which is not supported")
    try:
        if pa.types.is_floating(kind):
            wide = pc.add(array.cast(pa.float64()), 0.0)  # -0.0 is the same value as 0.0
            return pc.if_else(pc.is_nan(wide), pa.scalar(None, pa.float64()), wide)
        if pa.types.is_integer(kind) and kind != pa.uint64():
            return array.cast(pa.int64())
        text = array.cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} of type {kind} is not readable: {error}") from error
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


@dataclass
class Vocabulary:
    """The values of one categorical column.

    Attributes:
        seen: count of every distinct training value; missing cells are not values.
        rows: number of training cells, missing ones too.
    """

    seen: dict[Any, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, values: pa.Array) -> None:
        """Count the values of a batch."""
        self.rows += len(values)
        counted = pc.value_counts(values.drop_null())
        for value, count in zip(
            counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True
        ):
            self.seen[value] = self.seen.get(value, 0) + count

    def close(self, min_count: int) -> tuple[list[Any], npt.NDArray[np.int64]]:
        """Return the kept values, most frequent first (ties by value), and the ids' counts.

        Id 0, for missing, rare and unknown values, comes first in the counts: the value at
        position i has id i + 1.
        """
        kept = sorted(
            ((count, value) for value, count in self.seen.items() if count >= min_count),
            key=lambda pair: (-pair[0], pair[1]),
        )
        counts = np.array([0, *(count for count, _ in kept)], dtype=np.int64)
        counts[0] = self.rows - counts.sum()
        return [value for _, value in kept], counts


def numbers(batch: pa.RecordBatch, column: Column) -> npt.NDArray[np.float64]:
    """Return a numeric column after its transform, NaN where it is missing.

    Raises:
        DataError: a value is infinite or not a number.
    """
    array = batch.column(column.name)
    try:
        values: npt.NDArray[np.float64] = (
            array.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        )
    except pa.ArrowException as error:
        raise DataError(f"column {column.name!r} is not numeric: {error}") from error
    if np.isinf(values).any():
        raise DataError(f"column {column.name!r} holds an infinite value; numbers must be finite")
    if column.transform == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


@dataclass
class Moments:
    """Mean and deviation of one numeric column, without its missing values.

    Batches are merged by their means and sums of squared distances (Chan et al., 1983), which
    stays exact for large values of small spread.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Add the values of a batch."""
        known = values[~np.isnan(values)]
        if not len(known):
            return
        mean = float(known.mean())
        self.merge(Moments(len(known), mean, float(((known - mean) ** 2).sum())))

    def merge(self, other: Moments) -> None:
        """Add what other moments have seen."""
        if not other.count:
            return
        before = self.count
        self.count += other.count
        step = other.mean - self.mean
        self.mean += step * other.count / self.count
        self.squares += other.squares
        self.squares += step**2 * before * other.count / self.count

    def close(self) -> tuple[float, float]:
        """Return mean and deviation; a constant column has deviation 1.

        Both are rounded (deviation to 9 digits, mean to a millionth of it), so that the sizes of
        the batches, which decide the order of summation, do not show in the result.
        """
        if not self.count:
            return 0.0, 1.0
        deviation = math.sqrt(self.squares / self.count)
        if deviation <= 1e-14 * abs(self.mean):
            return self.mean, 1.0
        deviation = float(f"{deviation:.9g}")
        unit = deviation * 1e-6
        return round(self.mean / unit) * unit, deviation


def labels(batch: pa.RecordBatch, name: str, start: int = 0) -> npt.NDArray[np.int8]:
    """Return the labels of a batch.

    Args:
        batch: rows.
        name: the label's column: booleans, numbers, or texts of numbers.
        start: number of the batch's first row, for messages; rows count from 0.

    Raises:
        DataError: a label is missing or not 0 or 1.
    """
    array = batch.column(name)
    try:
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.int8())
        numeric = array.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except pa.ArrowException as error:
        raise DataError(f"label {name!r} must be 0 or 1: {error}") from error
    missing = np.isnan(numeric)
    if missing.any():
        row = start + int(np.flatnonzero(missing)[0])
        raise DataError(
            f"label {name!r}: {int(missing.sum())} values are missing, the first in row {row}"
        )
    wrong = (numeric != 0) & (numeric != 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"label {name!r} must be 0 or 1, got {numeric[row]:g} in row {start + row}")
    made: npt.NDArray[np.int8] = numeric.astype(np.int8)
    return made


def count_rows(batches: Iterable[pa.RecordBatch]) -> int:
    """Number of rows of a stream."""
    return sum(batch.num_rows for batch in batches)
