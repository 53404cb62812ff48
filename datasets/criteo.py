"""Criteo Kaggle: the original ``train.txt``, and the first 80,000 rows as a small set."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import Source, Transform, parquet, text, unchanged
from featemb.errors import DataError, nearest

TERMS = "Criteo Labs terms: research, non-commercial; no redistribution by this project"
INTEGERS = tuple(f"I{number}" for number in range(1, 14))
BUCKETS = tuple(f"B{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
_SUMMARY = "an ad shown; label: clicked"


def _recipe(min_count: int, split: SplitRule, integers: str) -> Recipe:
    columns = [Column(name=name) for name in CATEGORIES]
    if integers != "buckets":
        columns += [Column(name=name, kind="numeric", transform="log") for name in INTEGERS]
    if integers != "numeric":  # only the 26 hashed fields are filtered by count
        names = INTEGERS if integers == "buckets" else BUCKETS
        columns += [Column(name=name, min_count=1) for name in names]
    return Recipe(label="label", columns=columns, min_count=min_count, split=split)


def _transform(integers: str) -> Transform:
    choices = {"numeric": unchanged, "buckets": _replace_by_buckets, "both": _add_buckets}
    if integers not in choices:
        raise DataError(f"integers: unknown choice {integers!r}; {nearest(integers, choices)}")
    return choices[integers]


def _bucket(column: pa.Array) -> pa.Array:
    """``floor(ln(x)^2)`` of each integer x > 2, else x; missing stays missing."""
    array = column.cast(pa.int64())
    logarithm = pc.ln(pc.max_element_wise(array, 1).cast(pa.float64()))
    bucket = pc.floor(pc.multiply(logarithm, logarithm)).cast(pa.int64())
    return pc.if_else(pc.greater(array, 2), bucket, array)


def _replace_by_buckets(batch: pa.RecordBatch) -> pa.RecordBatch:
    for name in INTEGERS:
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, name, _bucket(batch.column(name)))
    return batch


def _add_buckets(batch: pa.RecordBatch) -> pa.RecordBatch:
    for name, added in zip(INTEGERS, BUCKETS, strict=True):
        batch = batch.append_column(added, _bucket(batch.column(name)))
    return batch


@protocol("criteo", _SUMMARY, TERMS)
def prepare(
    root: str | os.PathLike[str] | None = None,
    min_count: int = 10,
    seed: int = 2018,
    chronological: bool = False,
    integers: str = "numeric",
) -> tuple[Source, Recipe]:
    """``train.txt`` (tab-separated, no header); random 8:1:1 by ``seed``, or in time order.

    26 categorical fields, values seen fewer than 10 times in training are unknown; 13 integers
    as numbers, ``sign(x) log(1 + |x|)``, standardised, missing is 0 after that. With
    ``integers="buckets"`` they are 13 more categorical fields: ``floor(ln(x)^2)`` for x > 2, else
    x (the challenge's winners, 2014); with ``integers="both"`` they are numbers and, as B1 to
    B13, such fields too.
    """
    path = locate(root, "train.txt", "criteo/train.txt", "train.txt.gz")
    types = {"label": pa.int8()} | dict.fromkeys(INTEGERS, pa.int64())
    types |= dict.fromkeys(CATEGORIES, pa.string())
    names = ("label", *INTEGERS, *CATEGORIES)
    source = text(path, names, types, delimiter="\t", transform=_transform(integers))
    split = SplitRule(rule="order" if chronological else "random", seed=seed)
    return source, _recipe(min_count, split, integers)


@protocol("criteo_head80k", _SUMMARY + "; first 80,000 rows in time order", TERMS)
def prepare_head(
    root: str | os.PathLike[str] | None = None, min_count: int = 2, integers: str = "both"
) -> tuple[Source, Recipe]:
    """Chronological: first 57,600 rows train, next 6,400 validation, last 16,000 test.

    Categories as in ``criteo``, with a minimum count of 2; integers as numbers and as fields of
    buckets, which a set this small gains from.
    """
    path = locate(root, "criteo_head80k.parquet")
    split = SplitRule(rule="order", fractions=(0.72, 0.08, 0.2))
    return parquet(path, _transform(integers)), _recipe(min_count, split, integers)
