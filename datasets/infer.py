"""Your own table: a recipe inferred from its columns, and loading by it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.cache import encoded
from featemb.datasets.dataset import Dataset
from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.source import Source, require_columns
from featemb.datasets.tables import tables
from featemb.errors import DataError, nearest

# A number with more distinct values than this is a quantity, unless its name says id.
_MOST_CATEGORIES = 1000
_MOST_TRACKED = 1_000_000
_FEWEST_ROW_IDS = 50
_BAR = "|"
_ID_NAME = re.compile(r"(?i:(^|[_\W])(ids?|code|zip|hash|key|user|item)\d*($|[_\W]))|[a-z]I[dD]s?$")


@dataclass
class _Look:
    """What was seen of one column: cells that are not missing, and a bounded set of values."""

    type: pa.DataType
    distinct: set[Any] = field(default_factory=set)
    rows: int = 0
    bars: int = 0
    whole: bool = True

    def add(self, array: pa.Array) -> None:
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        self.type = array.type
        if pa.types.is_nested(self.type):
            return
        if pa.types.is_floating(self.type):
            array = array.filter(pc.invert(pc.is_nan(array)))
            self.whole &= bool(pc.all(pc.equal(pc.floor(array), array), min_count=0).as_py())
        array = array.drop_null()
        self.rows += len(array)
        if _is_text(self.type):
            self.bars += int(pc.sum(pc.match_substring(array, _BAR)).as_py() or 0)
        if len(self.distinct) < _MOST_TRACKED:
            self.distinct.update(pc.unique(array).to_pylist())


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def infer(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    label: str,
    *,
    min_count: int = 2,
    user: str | None = None,
    time: str | None = None,
    separators: Mapping[str, str] | None = None,
    split: SplitRule | None = None,
) -> Recipe:
    """Infer a recipe from a table's columns, in one streamed pass.

    Texts, booleans and dictionaries are categorical. Lists, and texts of which a fifth or more
    hold a ``|``, are multi-valued. Numbers with a fraction are numeric. Integers (also those that
    are stored as floats) are categorical where their name says so (id, code, zip, hash, key) or
    they have at most 1,000 distinct values, else numeric with ``log1p``. Left out are dates and
    times, constant columns, columns with a different value in every row, lists of numbers with a
    fraction. Every column keeps the reason as a note.

    Args:
        path: a Parquet, CSV or TSV file, or several that make one table.
        label: column of the label.
        min_count: values seen less often in training are unknown.
        user: column that groups rows for gAUC.
        time: column to split by, oldest rows first; it is no feature.
        separators: column -> text that separates the values in its cells.
        split: how rows are split; None is random 8:1:1 by seed 0, or by ``time``.

    Raises:
        DataError: the file or a named column is missing, or no column is categorical.
    """
    if time is not None and split is not None:
        raise DataError("give either time or split, not both")
    if time is not None:
        split = SplitRule(rule="time", column=time)
    split, separators = split or SplitRule(), dict(separators or {})
    looks: dict[str, _Look] = {}
    named = [name for name in (label, user, split.column) if name is not None]
    source = tables(path)
    where = ", ".join(file.name for file in source.files)
    for batch in source.batches():
        require_columns(batch, [*named, *separators], where)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            looks.setdefault(name, _Look(column.type)).add(column)
    if not looks:
        raise DataError(f"{where} has no rows")
    columns, dropped = [], {}
    for name, look in looks.items():
        if name == label:
            continue
        decided = _decide(name, look, separators.get(name))
        if name == split.column:
            decided = "the rows are split by it"
        if isinstance(decided, str):
            dropped[name] = decided
        else:
            columns.append(decided)
    return Recipe(
        label=label, columns=columns, min_count=min_count, split=split, user=user, dropped=dropped
    )


def _decide(name: str, look: _Look, separator: str | None) -> Column | str:
    """Return the column, or the reason to leave it out."""
    kind, distinct = look.type, len(look.distinct)
    if separator is not None:
        return Column(name=name, multi=True, separator=separator, reason="a separator is given")
    unfit = _unfit(kind)
    if unfit is not None:
        return unfit
    if pa.types.is_nested(kind):
        return Column(name=name, multi=True, reason="a list of values")
    if distinct <= 1:
        return "constant"
    fraction = pa.types.is_decimal(kind) or (pa.types.is_floating(kind) and not look.whole)
    if fraction:
        reason = "a number with a fraction"
        return Column(name=name, kind="numeric", transform="none", reason=reason)
    if distinct == look.rows and look.rows >= _FEWEST_ROW_IDS:
        return "a different value in every row"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _decide_integer(name, distinct)
    if look.bars * 5 >= look.rows:
        reason = f"{look.bars} of {look.rows} texts hold a {_BAR}"
        return Column(name=name, multi=True, separator=_BAR, reason=reason)
    return Column(name=name, reason=f"{_count(distinct)} values of type {kind}")


def _unfit(kind: pa.DataType) -> str | None:
    """Return why a type cannot be an input, or None."""
    if pa.types.is_temporal(kind):
        return "a date or time: split by it, or derive hour, weekday or age yourself"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_floating(kind.value_type):
            return "a list of numbers with a fraction: make columns of them"
        return None
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return f"values of type {kind} are not supported"
    return None


def _decide_integer(name: str, distinct: int) -> Column:
    if _ID_NAME.search(name):
        reason = f"an integer whose name says id, {_count(distinct)} values"
        return Column(name=name, reason=reason)
    reason = f"an integer of {_count(distinct)} values"
    if distinct <= _MOST_CATEGORIES:
        return Column(name=name, reason=reason)
    return Column(name=name, kind="numeric", transform="log", reason=reason)


def _count(distinct: int) -> str:
    return str(distinct) if distinct < _MOST_TRACKED else f"{_MOST_TRACKED} or more"


def own_table(
    path: Path,
    cache: str | os.PathLike[str] | None,
    schema: str | os.PathLike[str] | None,
    label: str | None,
    recipe: Recipe | None,
    options: Mapping[str, Any],
) -> Dataset:
    """Load a user's table by a recipe: given, in a JSON file, or inferred with options.

    Raises:
        DataError: the file is missing, nothing says what the label is, or an option does not fit.
    """
    source, recipe, meta = described(path, schema, label, recipe, options)
    return encoded(path.stem, source, recipe, cache, meta)


def described(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    schema: str | os.PathLike[str] | None,
    label: str | None,
    recipe: Recipe | None,
    options: Mapping[str, Any],
) -> tuple[Source, Recipe, dict[str, Any]]:
    """Return source, recipe and facts of a user's own table, of one file or several.

    Raises:
        DataError: as `own_table`.
    """
    source = tables(path)
    names = [file.name for file in source.files]
    name = ", ".join(names)
    allowed = list(inspect.signature(infer).parameters)[2:]
    for option in options:
        if option not in allowed:
            raise DataError(f"{name}: unknown option {option!r}; {nearest(option, allowed)}")
    if options and (schema is not None or recipe is not None):
        raise DataError(f"{name}: the recipe says all; options {sorted(options)} must go")
    if schema is not None:
        if recipe is not None:
            raise DataError(f"{name}: give either a schema file or a recipe, not both")
        try:
            recipe = Recipe.from_json(Path(schema).read_text(encoding="utf8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the schema {os.fspath(schema)!r}: {error}") from error
    if recipe is None:
        if label is None:
            raise DataError(f"{name}: give the label's column, or a schema file")
        recipe = infer(path, label, **options)
    elif label is not None and label != recipe.label:
        raise DataError(f"the label is {label!r}, the schema says {recipe.label!r}")
    meta = {
        "summary": f"table {name}; label: {recipe.label}",
        "terms": "your own",
        "protocol": "as its recipe says",
        "source": names,
    }
    return source, recipe, meta
