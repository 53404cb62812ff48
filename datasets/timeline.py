"""`Timeline`: rows in order of time, cut into days; ids are hashes of the raw values.

What a vocabulary knows changes from day to day, so a timeline has none: `featemb.benchmarks.drift`
builds them from the days that have passed, and hash-addressed methods take the ids as they are.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from featemb.datasets.cache import encoded
from featemb.datasets.dataset import Dataset, Split
from featemb.datasets.drifting import drifting_days
from featemb.datasets.hashed import Hashing
from featemb.datasets.infer import described
from featemb.datasets.recipe import PARTS, Recipe, SplitRule
from featemb.datasets.registry import names, prepared
from featemb.datasets.source import Source
from featemb.datasets.splitting import times
from featemb.errors import DataError, nearest


@dataclass(frozen=True)
class Timeline:
    """Days of rows.

    Attributes:
        name: of the data.
        features: names of the categorical features.
        numeric: names of the numeric columns; standardised by the first day.
        days: rows of each day; ids int64, non-negative and unbounded, 0 is missing.
        fingerprint: SHA-256 over the rows.
        best_auc: of each day, the AUC of the true probabilities, where they are known.
        meta: facts of the source.
    """

    name: str
    features: tuple[str, ...]
    numeric: tuple[str, ...]
    days: Sequence[Split]
    fingerprint: str
    best_auc: tuple[float, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def timeline(
    name: str | os.PathLike[str],
    days: int = 10,
    root: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    schema: str | os.PathLike[str] | None = None,
    label: str | None = None,
    recipe: Recipe | None = None,
    **options: Any,
) -> Timeline:
    """Cut data with an order of time into days of equally many rows.

    Args:
        name: as of `featemb.datasets.load`; "drifting" is made.
        days: number of days, at least 3.
        root: as of `load`.
        cache: as of `load`.
        schema: as of `load`.
        label: as of `load`.
        recipe: as of `load`.
        options: as of `load`; ``time=`` names a table's column of time.

    Raises:
        DataError: the rows have no order of time, a feature is multi-valued, there are fewer than
            three days, or as of `load`.
    """
    if isinstance(days, bool) or not isinstance(days, int) or days < 3:
        raise DataError(f"days must be an integer >= 3, got {days!r}")
    if os.fspath(name) == "drifting":
        return _made(days, options)
    if os.fspath(name) in names():
        source, found, meta = prepared(os.fspath(name), root, options)
        word = os.fspath(name)
    else:
        if not os.path.exists(name):
            raise DataError(f"{os.fspath(name)!r} is neither a data set nor a file")
        source, found, meta = described(name, schema, label, recipe, options)
        word = os.path.splitext(os.path.basename(name))[0]
    first = SplitRule(rule="order", fractions=(1 / days, (1 - 1 / days) / 2, (1 - 1 / days) / 2))
    raw = replace(found, hashing=Hashing(), split=first, user=None)
    _check(word, found)
    data = encoded(f"{word}-raw", source, raw, cache, meta)
    rows = _in_order(_whole(data), source, found)
    columns = data.schema
    return Timeline(
        word,
        columns.names,
        columns.numeric,
        _cut(rows, days),
        data.fingerprint,
        meta=meta | {"split": found.split.rule},
    )


def _check(name: str, recipe: Recipe) -> None:
    if recipe.split.rule not in ("order", "time"):
        raise DataError(
            f"the rows of {name} have no order of time, their split is by the rule "
            f"{recipe.split.rule!r}: name a column of time, or a chronological protocol"
        )
    several = [column.name for column in recipe.categorical if column.multi]
    if several:
        raise DataError(f"{name}: days of multi-valued features are not supported: {several}")


def _whole(data: Dataset) -> Split:
    parts = [data.splits[part] for part in PARTS]
    ids = [part.ids for part in parts if part.ids is not None]
    numeric = [part.numeric for part in parts if part.numeric is not None]
    return Split(
        torch.cat([part.label for part in parts]),
        torch.cat(ids).long(),
        (),
        torch.cat(numeric) if numeric else None,
    )


def _in_order(rows: Split, source: Source, recipe: Recipe) -> Split:
    if recipe.split.rule == "order":
        return rows
    order = np.argsort(times(source, recipe.split.column or ""), kind="stable")
    return rows.take(torch.from_numpy(order))


def _cut(rows: Split, days: int) -> list[Split]:
    if len(rows) < days:
        raise DataError(f"{len(rows)} rows are fewer than {days} days")
    return [rows.take(part) for part in torch.tensor_split(torch.arange(len(rows)), days)]


def _made(days: int, options: Mapping[str, Any]) -> Timeline:
    allowed = [one for one in inspect.signature(drifting_days).parameters if one != "days"]
    for option in options:
        if option not in allowed:
            raise DataError(f"drifting: unknown option {option!r}; {nearest(option, allowed)}")
    made = drifting_days(days=days, **options)
    hashing, splits = Hashing(), []
    for ids, label in zip(made.ids, made.label, strict=True):
        raw = np.stack([hashing.ids(pa.array(ids[:, f]), f) for f in range(ids.shape[1])], axis=1)
        splits.append(Split(torch.from_numpy(label), torch.from_numpy(raw)))
    features = tuple(f"f{f}" for f in range(made.ids[0].shape[1]))
    meta = {"summary": "synthetic clicks whose ids enter and leave", "settings": made.settings}
    return Timeline("drifting", features, (), splits, made.fingerprint, made.best_auc, meta)
