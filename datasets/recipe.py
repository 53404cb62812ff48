"""`Recipe`: how a table becomes ids: columns, label, split. Saved as JSON, edited by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from featemb.datasets.hashed import Hashing
from featemb.errors import DataError, nearest
from featemb.schema import Pooling

Kind = Literal["categorical", "numeric"]
Transform = Literal["none", "log"]
Rule = Literal["random", "order", "time", "column"]
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One input column.

    Attributes:
        name: column of the table, and name of the feature.
        kind: categorical (ids) or numeric (passes to the model as a number).
        multi: whether a cell holds several values: a list, or a text with ``separator``.
        separator: splits a text cell into values; spaces around a value do not count.
        pooling: how a bag's vectors become one.
        min_count: values seen less often in the training split are unknown (id 0); None takes
            the recipe's.
        transform: of a numeric column: "log" is ``sign(x) log(1 + |x|)``; then every numeric
            column is standardised by its training mean and deviation.
        reason: why the column was inferred to be so; a note, without effect.
    """

    name: str
    kind: Kind = "categorical"
    multi: bool = False
    separator: str | None = None
    pooling: Pooling = "mean"
    min_count: int | None = None
    transform: Transform = "log"
    reason: str = ""

    def __post_init__(self) -> None:
        for attribute, allowed in (
            ("kind", get_args(Kind)),
            ("pooling", get_args(Pooling)),
            ("transform", get_args(Transform)),
        ):
            value = getattr(self, attribute)
            if value not in allowed:
                raise DataError(
                    f"column {self.name!r}: unknown {attribute} {value!r}; "
                    f"{nearest(str(value), allowed)}"
                )
        if self.min_count is not None and self.min_count < 1:
            raise DataError(f"column {self.name!r}: min_count must be >= 1, got {self.min_count}")


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How rows are split.

    Attributes:
        rule: "random" (a permutation of the rows by ``seed``), "order" (first rows train, last
            rows test: chronological files), "time" (the same, after sorting by ``column``; ties
            stay in the file's order), or "column" (``column`` names each row's part).
        fractions: shares of train, valid and test, for random and order.
        seed: of the permutation.
        column: the column that holds the time or names the part.
        values: its value for train, valid and test; with no value for valid, ``valid_share`` of
            the training rows become validation rows, by a permutation.
        valid_share: see ``values``.
    """

    rule: Rule = "random"
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0
    column: str | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    valid_share: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(self.fractions))
        if self.rule not in get_args(Rule):
            raise DataError(
                f"split: unknown rule {self.rule!r}; {nearest(self.rule, get_args(Rule))}"
            )
        total = sum(self.fractions)
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(total - 1) > 1e-9:
            raise DataError(
                f"split: fractions must be three shares > 0 of sum 1, got {self.fractions}"
            )
        if self.rule in ("time", "column") and self.column is None:
            raise DataError(f"split: the rule {self.rule!r} needs a column")
        if self.rule == "column" and not {"train", "test"} <= set(self.values):
            raise DataError("split: the rule 'column' needs values for train and test")
        for part in self.values:
            if part not in PARTS:
                raise DataError(f"split: unknown part {part!r}; {nearest(part, PARTS)}")
        if not 0 < self.valid_share < 1:
            raise DataError(f"split: valid_share must be in (0, 1), got {self.valid_share}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a table becomes ids.

    Attributes:
        label: column of the label, 0 or 1.
        columns: the input columns, in order.
        min_count: default of the columns.
        split: how rows are split.
        user: column whose values group rows for gAUC, or None; it need not be an input column.
        dropped: columns left out, and why; a note, without effect.
        hashing: makes the ids of all categorical columns by a hash; None: by vocabularies, most
            frequent value first.
    """

    label: str
    columns: Sequence[Column]
    min_count: int = 1
    split: SplitRule = field(default_factory=SplitRule)
    user: str | None = None
    dropped: Mapping[str, str] = field(default_factory=dict)
    hashing: Hashing | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if not self.categorical:
            raise DataError("a recipe needs at least one categorical column, got none")
        if len(set(names)) < len(names) or self.label in names:
            raise DataError(f"columns must be distinct and not the label {self.label!r}: {names}")
        if self.min_count < 1:
            raise DataError(f"min_count must be >= 1, got {self.min_count}")
        several = [column.name for column in self.categorical if column.multi]
        if self.hashing is not None and several and (self.hashing.size or 1 << 63) > 1 << 31:
            raise DataError(
                f"hashing: multi-valued columns {several} need a size of at most 2^31, "
                f"got {self.hashing.size}"
            )

    @property
    def categorical(self) -> tuple[Column, ...]:
        """The categorical columns."""
        return tuple(column for column in self.columns if column.kind == "categorical")

    @property
    def numeric(self) -> tuple[Column, ...]:
        """The numeric columns."""
        return tuple(column for column in self.columns if column.kind == "numeric")

    @property
    def needed(self) -> frozenset[str]:
        """Names of all columns that encoding reads: inputs, label, users, and the split's."""
        others = (self.label, self.user, self.split.column)
        names = [column.name for column in self.columns]
        return frozenset([*names, *(name for name in others if name is not None)])

    def threshold(self, column: Column) -> int:
        """Return the minimum count of a column."""
        return self.min_count if column.min_count is None else column.min_count

    def to_json(self) -> str:
        """Return the recipe as JSON text; settings with their default value are left out."""
        document = _sparse(self) | {"label": self.label}
        document["columns"] = [{"name": c.name} | _sparse(c) for c in self.columns]
        document["split"] = {"rule": self.split.rule} | _sparse(self.split)
        return json.dumps(document, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read the text that `to_json` writes.

        Raises:
            DataError: the text is no JSON, or holds an unknown or wrong setting.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"a recipe must be JSON: {error}") from error
        if not isinstance(document, dict):
            raise DataError("a recipe must be a JSON object")
        entries = document.get("columns", [])
        if not isinstance(entries, list):
            raise DataError(f"recipe: columns must be a list, got {entries!r}")
        columns = [_read(Column, entry, "column") for entry in entries]
        split = _read(SplitRule, document.get("split", {}), "split")
        found = document | {"columns": columns, "split": split}
        if document.get("hashing") is not None:
            found["hashing"] = _read(Hashing, document["hashing"], "hashing")
        return _read(cls, found, "recipe")


def _sparse(value: Any) -> dict[str, Any]:
    blank = {f.name: f.default for f in fields(value)}
    made = asdict(value)
    return {
        name: made[name]
        for name, default in blank.items()
        if made[name] != default and made[name] not in ({}, ())
    }


T = TypeVar("T")


def _read(kind: type[T], entry: Any, where: str) -> T:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, got {entry!r}")
    allowed = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in entry:
        if name not in allowed:
            raise DataError(f"{where}: unknown setting {name!r}; {nearest(name, allowed)}")
    try:
        return kind(**entry)
    except TypeError as error:
        raise DataError(f"{where}: {error}") from error
