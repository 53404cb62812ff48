"""Your own table: a recipe inferred from its columns, and loading by it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.cache import encoded
from featemb.datasets.dataset import Dataset
from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.source import require_columns, table
from featemb.errors import DataError

# A number with more distinct values than this is a quantity, unless its name says id.
_MOST_CATEGORIES = 1000
_MOST_TRACKED = 1_000_000
_ID_WORDS = ("id", "code", "zip", "hash", "key")


@dataclass
class _Look:
    """What was seen of one column."""

    type: pa.DataType
    distinct: set[Any] = field(default_factory=set)
    rows: int = 0

    def add(self, array: pa.Array) -> None:
        self.rows += len(array) - array.null_count
        if len(self.distinct) < _MOST_TRACKED and not pa.types.is_nested(self.type):
            self.distinct.update(pc.unique(array.drop_null()).to_pylist())


def infer(
    path: str | os.PathLike[str],
    label: str,
    *,
    min_count: int = 2,
    user: str | None = None,
    split: SplitRule | None = None,
) -> Recipe:
    """Infer a recipe from a table's columns, in one streamed pass.

    Texts, booleans and dictionaries are categorical; floats are numeric; lists are
    multi-valued; an integer is categorical where it has at most 1,000 distinct values or its name
    says so (id, code, zip, hash, key), else numeric. Left out are dates and times, constant
    columns, and columns with a different value every row. Every column keeps the reason as a note.

    Args:
        path: a Parquet, CSV or TSV file.
        label: column of the label.
        min_count: values seen less often in training are unknown.
        user: column that groups rows for gAUC.
        split: how rows are split; None is random 8:1:1 by seed 0.

    Raises:
        DataError: the file or the label's column is missing, or no column is categorical.
    """
    looks: dict[str, _Look] = {}
    for batch in table(Path(path)).batches():
        require_columns(batch, [label], Path(path).name)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            looks.setdefault(name, _Look(column.type)).add(column)
    if not looks:
        raise DataError(f"{Path(path).name} has no rows")
    columns, dropped = [], {}
    for name, look in looks.items():
        if name == label:
            continue
        decided = _decide(name, look)
        if isinstance(decided, str):
            dropped[name] = decided
        else:
            columns.append(decided)
    return Recipe(
        label=label,
        columns=columns,
        min_count=min_count,
        split=split or SplitRule(),
        user=user,
        dropped=dropped,
    )


def _decide(name: str, look: _Look) -> Column | str:
    """Return the column, or the reason to leave it out."""
    kind, distinct = look.type, len(look.distinct)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return Column(name=name, multi=True, reason="a list of values")
    if pa.types.is_temporal(kind):
        return "a date or time: derive hour, weekday or age yourself"
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return f"values of type {kind} are not supported"
    if distinct <= 1:
        return "constant"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Column(name=name, kind="numeric", reason="a number with a fraction")
    if distinct == look.rows and look.rows > _MOST_CATEGORIES:
        return "a different value every row"
    if not pa.types.is_integer(kind):
        return Column(name=name, reason=f"{distinct} values of type {kind}")
    words = name.lower().replace("-", "_").split("_")
    if any(word in _ID_WORDS or name.lower().endswith("id") for word in words):
        return Column(name=name, reason=f"an integer whose name says id, {distinct} values")
    if distinct <= _MOST_CATEGORIES:
        return Column(name=name, reason=f"an integer of {distinct} values")
    return Column(name=name, kind="numeric", reason=f"an integer of {distinct} values")


def own_table(
    path: Path,
    cache: str | os.PathLike[str] | None,
    schema: str | os.PathLike[str] | None,
    label: str | None,
    recipe: Recipe | None,
) -> Dataset:
    """Load a user's table by a recipe: given, in a JSON file, or inferred.

    Raises:
        DataError: the file is missing, or nothing says what the label is.
    """
    source = table(path)
    if schema is not None:
        try:
            recipe = Recipe.from_json(Path(schema).read_text(encoding="utf8"))
        except OSError as error:
            raise DataError(f"cannot read the schema {os.fspath(schema)!r}: {error}") from error
    if recipe is None:
        if label is None:
            raise DataError(f"{path.name}: give the label's column, or a schema file")
        recipe = infer(path, label)
    elif label is not None and label != recipe.label:
        raise DataError(f"the label is {label!r}, the schema says {recipe.label!r}")
    meta = {"summary": f"table {path.name}; label: {recipe.label}", "source": [path.name]}
    return encoded(path.stem, source, recipe, cache, meta)
