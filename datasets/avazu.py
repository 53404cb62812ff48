"""Avazu: the original ``train.csv``."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import Source, require_columns, text

FIELDS = (
    ["C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain"]
    + ["app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type"]
    + [f"C{number}" for number in range(14, 22)]
)
TIMES = ["hour_of_day", "weekday", "is_weekend"]


def _times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Derive hour of the day, weekday (Monday is 0) and weekend from ``hour`` (YYMMDDHH)."""
    require_columns(batch, ["hour", "click", *FIELDS], "train.csv")
    times = pc.strptime(batch.column("hour"), format="%y%m%d%H", unit="s")
    weekday = pc.day_of_week(times).cast(pa.int64())
    batch = batch.append_column("hour_of_day", pc.hour(times).cast(pa.int64()))
    batch = batch.append_column("weekday", weekday)
    weekend = pa.array((weekday.to_numpy(zero_copy_only=False) >= 5).astype(np.int64))
    return batch.append_column("is_weekend", weekend)


@protocol("avazu", "a mobile ad shown; label: clicked", "Avazu competition terms on Kaggle")
def prepare(
    root: str | os.PathLike[str] | None = None,
    min_count: int = 2,
    seed: int = 2018,
    chronological: bool = False,
) -> tuple[Source, Recipe]:
    """``train.csv``; ``id`` is dropped; 24 fields with hour of day, weekday and weekend.

    Random 8:1:1 by ``seed``, or in time order; values seen once in training are unknown.
    """
    path = locate(root, "train.csv", "avazu/train.csv", "train.csv.gz")
    types = dict.fromkeys(["id", "hour", *FIELDS], pa.string()) | {"click": pa.int8()}
    recipe = Recipe(
        label="click",
        columns=[Column(name=name) for name in (*FIELDS, *TIMES)],
        min_count=min_count,
        split=SplitRule(rule="order" if chronological else "random", seed=seed),
        dropped={"id": "a different value every row"},
    )
    return text(path, types=types, transform=_times), recipe
