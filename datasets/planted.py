"""Planted truth: three synthetic data sets of which it is known who must win at a small size.

Each has ten features of many ids. In two of them 1% of the ids carry all signal: a table of 1/50 of
the bytes has room for these, if a method finds them. In the third every id carries as much as every
other. They are `featemb.datasets.synthetic.synthetic` with other settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from featemb.datasets.dataset import Dataset
from featemb.datasets.registry import built
from featemb.datasets.synthetic import synthetic

_FEATURES = 10
_SHARE = 0.01


@built("planted_frequent")
def frequent(rows: int = 60_000, ids: int = 300, seed: int = 0) -> Dataset:
    """Planted truth: the most frequent 1% of the ids carry all signal.

    Args:
        rows: number of rows.
        ids: ids of each of the ten features.
        seed: the one source of randomness.
    """
    return _planted("planted_frequent", rows, ids, seed, zipf=1.0, signal_on="frequent")


@built("planted_random")
def random(rows: int = 60_000, ids: int = 300, seed: int = 0) -> Dataset:
    """Planted truth: a random 1% of the ids, all as frequent as each other, carry all signal.

    Args:
        rows: number of rows.
        ids: ids of each of the ten features.
        seed: the one source of randomness.
    """
    return _planted("planted_random", rows, ids, seed, zipf=0.0, signal=1.5)


@built("planted_equal")
def equal(rows: int = 60_000, ids: int = 300, seed: int = 0) -> Dataset:
    """Planted truth: every id is as frequent, and carries as much signal, as every other.

    Args:
        rows: number of rows.
        ids: ids of each of the ten features.
        seed: the one source of randomness.
    """
    return _planted("planted_equal", rows, ids, seed, zipf=0.0, signal_share=1.0, weights="signs")


def _planted(name: str, rows: int, ids: int, seed: int, **settings: Any) -> Dataset:
    settings = {"signal_share": _SHARE} | settings
    made: Dataset = synthetic(rows, (ids,) * _FEATURES, seed=seed, **settings)
    return replace(made, name=name)
