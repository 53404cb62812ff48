"""`Encoding`: what turns raw columns into ids and numbers: vocabularies, means and deviations.

It is what a server needs beside a model. It is kept in a folder of encoded data
(``vocabulary.arrow``), and travels inside exported models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import feather
from torch import Tensor

from featemb.datasets.dataset import Batch
from featemb.datasets.recipe import Column, Recipe
from featemb.datasets.vocabulary import cells, numbers
from featemb.errors import DataError
from featemb.export import Encoder, RawFeature, RawNumber
from featemb.export.tokens import Cells
from featemb.ids import Jagged
from featemb.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

FILE = "vocabulary.arrow"


@dataclass(frozen=True)
class Encoding:
    """Vocabularies of the categorical columns, moments of the numeric ones.

    Attributes:
        recipe: the columns.
        values: known values of each categorical column: the value at position i has id i + 1; 0 is
            missing or unknown. Where the recipe hashes, no values, of the right type.
        moments: mean and deviation of each numeric column after its transform.
    """

    recipe: Recipe
    values: Mapping[str, pa.Array]
    moments: Mapping[str, tuple[float, float]]

    def columns(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the encoded columns of a batch: int32 ids or lists of them, float32 numbers.

        Raises:
            DataError: a column is missing, of a type that is not supported, or holds an infinite
                number.
        """
        found = {c.name: self._ids(batch, c) for c in self.recipe.categorical}
        return found | {c.name: self._numbers(batch, c) for c in self.recipe.numeric}

    def _ids(self, batch: pa.RecordBatch, column: Column) -> pa.Array:
        values, lengths = cells(batch, column)
        if self.recipe.hashing is not None:
            place = self.recipe.categorical.index(column)
            trained = _cells(self.values[column.name])
            ids = pa.array(self.recipe.hashing.ids(values, place, trained))
        else:
            ids = _places(values, self.values[column.name])
        if lengths is None:
            return ids
        offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy())]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, ids)

    def _numbers(self, batch: pa.RecordBatch, column: Column) -> pa.Array:
        mean, deviation = self.moments[column.name]
        scaled = (numbers(batch, column) - mean) / deviation
        return pa.array(np.nan_to_num(scaled, nan=0.0).astype(np.float32))

    def __call__(self, table: pa.Table | pd.DataFrame) -> Batch:
        """Return ids and numbers of raw rows as a model takes them; labels are zero.

        Args:
            table: rows with the recipe's columns; others are left alone.

        Raises:
            DataError: as `columns`, or there are no rows.
        """
        rows = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table)
        for column in self.recipe.columns:
            if column.name not in rows.column_names:
                raise DataError(f"the rows lack the column {column.name!r}")
        if not rows.num_rows:
            raise DataError("there are no rows to encode")
        (batch,) = rows.combine_chunks().to_batches()
        found = self.columns(batch)
        numeric = [_tensor(found[c.name]) for c in self.recipe.numeric]
        return Batch(
            self._model_ids(found),
            torch.stack(numeric, 1) if numeric else None,
            torch.zeros(rows.num_rows),
        )

    def _model_ids(self, found: Mapping[str, pa.Array]) -> Tensor | Jagged:
        columns = [found[c.name] for c in self.recipe.categorical]
        if not any(c.multi for c in self.recipe.categorical):
            return torch.stack([_tensor(column).long() for column in columns], 1)
        values, lengths = zip(*map(_bag, columns), strict=True)
        return Jagged(torch.cat(values).long(), torch.cat(lengths))

    def encoder(self, schema: Schema) -> Encoder:
        """Return the same as tensors, to travel inside exported files.

        Args:
            schema: of the data set.

        Raises:
            ConfigError: two values of a vocabulary cannot be told apart when served.
        """
        hashing = self.recipe.hashing
        features = [
            RawFeature(
                name=c.name,
                cells=_cells(self.values[c.name]),
                rule="vocabulary" if hashing is None else "hash",
                values=self.values[c.name],
                multi=c.multi,
                separator=c.separator,
                seed=0 if hashing is None else hashing.seed,
            )
            for c in self.recipe.categorical
        ]
        numeric = [
            RawNumber(
                name=c.name,
                transform=c.transform,
                mean=self.moments[c.name][0],
                deviation=self.moments[c.name][1],
            )
            for c in self.recipe.numeric
        ]
        return Encoder.of(schema, features, numeric)

    def save(self, folder: Path) -> None:
        """Write the values to ``vocabulary.arrow`` in a folder: a row, a list a column."""
        lists = {
            name: pa.array([values.to_pylist()], pa.list_(values.type))
            for name, values in self.values.items()
        }
        feather.write_feather(pa.table(lists), folder / FILE, compression="zstd")

    @classmethod
    def read(cls, folder: Path, recipe: Recipe, moments: Mapping[str, Any]) -> Encoding:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or not readable.
        """
        try:
            table = feather.read_table(folder / FILE)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{str(folder)!r} holds no vocabularies: {error}") from error
        values = {
            name: table.column(name).combine_chunks().flatten() for name in table.column_names
        }
        return cls(recipe, values, {name: (one[0], one[1]) for name, one in moments.items()})


def _cells(values: pa.Array) -> Cells:
    """Return what the cells of a column hold; one without any value holds texts."""
    if pa.types.is_integer(values.type):
        return "integer"
    return "float" if pa.types.is_floating(values.type) else "text"


def _places(values: pa.Array, known: pa.Array) -> pa.Array:
    """Return the ids of values: 0 for what is missing or unknown."""
    if not len(known):
        return pa.array(np.zeros(len(values), np.int32))
    found = pc.index_in(values, value_set=known.cast(values.type), skip_nulls=True)
    return pc.add(pc.fill_null(found, -1), pa.scalar(1, pa.int32()))


def _tensor(column: pa.Array) -> Tensor:
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())


def _bag(column: pa.Array) -> tuple[Tensor, Tensor]:
    """Return values and lengths of one feature's cells; a single-valued one has one a row."""
    if pa.types.is_list(column.type):
        return _tensor(column.flatten()), _tensor(pc.list_value_length(column)).long()
    return _tensor(column), torch.ones(len(column), dtype=torch.int64)
