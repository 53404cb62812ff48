"""Criteo Kaggle: the original ``train.txt``, and the first 80,000 rows as a small set."""

from __future__ import annotations

import os

import pyarrow as pa

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import Source, parquet, text

TERMS = "Criteo Labs terms: research, non-commercial; no redistribution by this project"
INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
_SUMMARY = "an ad shown; label: clicked"


def _recipe(min_count: int, split: SplitRule) -> Recipe:
    columns = [Column(name=name) for name in CATEGORIES]
    columns += [Column(name=name, kind="numeric", transform="log") for name in INTEGERS]
    return Recipe(label="label", columns=columns, min_count=min_count, split=split)


@protocol("criteo", _SUMMARY, TERMS)
def prepare(
    root: str | os.PathLike[str] | None = None,
    min_count: int = 10,
    seed: int = 2018,
    chronological: bool = False,
) -> tuple[Source, Recipe]:
    """``train.txt`` (tab-separated, no header); random 8:1:1 by ``seed``, or in time order.

    26 categorical fields, values seen fewer than 10 times in training are unknown; 13 integers
    as numbers, ``sign(x) log(1 + |x|)``, standardised, missing is 0 after that.
    """
    path = locate(root, "train.txt", "criteo/train.txt", "train.txt.gz")
    types = {"label": pa.int8()} | dict.fromkeys(INTEGERS, pa.int64())
    types |= dict.fromkeys(CATEGORIES, pa.string())
    source = text(path, ("label", *INTEGERS, *CATEGORIES), types, delimiter="\t")
    split = SplitRule(rule="order" if chronological else "random", seed=seed)
    return source, _recipe(min_count, split)


@protocol("criteo_head80k", _SUMMARY + "; first 80,000 rows in time order", TERMS)
def prepare_head(
    root: str | os.PathLike[str] | None = None, min_count: int = 2
) -> tuple[Source, Recipe]:
    """Chronological: first 57,600 rows train, next 6,400 validation, last 16,000 test.

    Categories and integers as in ``criteo``, with a minimum count of 2.
    """
    path = locate(root, "criteo_head80k.parquet")
    split = SplitRule(rule="order", fractions=(0.72, 0.08, 0.2))
    return parquet(path), _recipe(min_count, split)
