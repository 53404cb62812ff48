"""From records to the rows of a report: seeds together, differences to the full table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from featemb.benchmarks.compare import reference_key, references
from featemb.benchmarks.stats import Difference, compare, holm, over_seeds
from featemb.errors import RunError

ALPHA = 0.05
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """The runs of one data set, model, method and size, over their seeds.

    Attributes:
        data: data set.
        model: model.
        method: spec text.
        asked: size asked for: "10x", "2 MB" or "-".
        seeds: number of finished runs.
        serving: serving bytes.
        training: training bytes.
        ratio: bytes of the full table / serving bytes.
        parts: serving bytes by part.
        auc: test AUC; over three seeds or more by Student's t, else DeLong's of the rows.
        logloss: test LogLoss, mean over seeds.
        gauc: test gAUC, mean over seeds, or None.
        calibration: mean prediction / mean label, mean over seeds.
        epochs: epochs run, mean over seeds.
        step_ms: median training step in ms, median over seeds.
        rows_per_second: training rows a second, median over seeds.
        difference: test AUC minus the full table's, or None for the full table itself.
        p: p-value of the difference, adjusted by Holm's rule within data set and model.
    """

    data: str
    model: str
    method: str
    asked: str
    seeds: int
    serving: int
    training: int
    ratio: float
    parts: Mapping[str, int]
    auc: Interval
    logloss: float
    gauc: float | None
    calibration: float
    epochs: float
    step_ms: float
    rows_per_second: float
    difference: Difference | None = None
    p: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether this is the full table, the reference."""
        return self.method == "full" and self.asked == "-"

    @property
    def verdict(self) -> str:
        """The difference in a plain word."""
        if self.difference is None or self.p is None:
            return "reference" if self.is_full else "no full table"
        if self.p >= ALPHA:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"


def asked_size(config: Mapping[str, Any]) -> str:
    """Return the size that a run was asked for, in words."""
    if config.get("ratio") is not None:
        return f"{config['ratio']:g}x"
    if config.get("budget") is not None:
        return f"{config['budget'] / 1e6:g} MB"
    return "-"


def aggregate(runs_dir: str | Path, records: Iterable[Record]) -> list[Row]:
    """Return the rows of all finished runs: by data set and model, largest first."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record["status"] == "ok":
            config = record["config"]
            key = (config["data"], config["model"], config["method"], asked_size(config))
            groups.setdefault(key, []).append(record)
    full = references(record for group in groups.values() for record in group)
    rows = [
        replace(_row(key, group), difference=_difference(group, full, Path(runs_dir)))
        for key, group in groups.items()
    ]
    rows = _adjust(rows)
    return sorted(rows, key=lambda row: (row.data, row.model, -row.serving, row.method))


def _row(key: tuple[str, ...], group: list[Record]) -> Row:
    test = [record["metrics"]["test"] for record in group]
    gaucs = [one["gauc"]["value"] for one in test if one.get("gauc")]
    sizes = [record["bytes"] for record in group]
    data, model, method, asked = key
    return Row(
        data=data,
        model=model,
        method=method,
        asked=asked,
        seeds=len(group),
        serving=max(size["serving"] for size in sizes),
        training=max(size["training"] for size in sizes),
        ratio=min(size["ratio"] for size in sizes),
        parts=sizes[0]["parts"],
        auc=_interval([one["auc"] for one in test]),
        logloss=statistics.mean(one["logloss"]["value"] for one in test),
        gauc=statistics.mean(gaucs) if gaucs else None,
        calibration=statistics.mean(one["calibration"] for one in test),
        epochs=statistics.mean(record["training"]["epochs_run"] for record in group),
        step_ms=statistics.median(record["timings"]["step_ms"] for record in group),
        rows_per_second=statistics.median(r["timings"]["rows_per_second"] for r in group),
    )


def _interval(values: list[Mapping[str, float]]) -> Interval:
    points = np.array([one["value"] for one in values])
    mean = float(points.mean())
    if len(points) < 3:
        reach = max(one["high"] - one["low"] for one in values) / 2
        return Interval(mean, mean - reach, mean + reach)
    error = float(points.std(ddof=1) / np.sqrt(len(points)))
    reach = float(scipy_stats.t.ppf(0.975, len(points) - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def _difference(
    group: list[Record], full: Mapping[tuple[Any, ...], Record], folder: Path
) -> Difference | None:
    """Compare runs with their full tables; None for these themselves, or where there is none."""
    found = []
    for record in group:
        reference = full.get(reference_key(record))
        if reference is None or reference is record:
            continue
        try:
            found.append(compare(folder / record["run_id"], folder / reference["run_id"]))
        except RunError:  # other test rows: there is nothing to pair
            continue
    return over_seeds(found) if found else None


def _adjust(rows: list[Row]) -> list[Row]:
    """Adjust the p-values within each data set and model."""
    adjusted = list(rows)
    for family in {(row.data, row.model) for row in rows}:
        places = [
            place
            for place, row in enumerate(rows)
            if (row.data, row.model) == family and row.difference is not None
        ]
        tests = [rows[place].difference for place in places]
        p_values = holm([test.p for test in tests if test is not None])
        for place, p in zip(places, p_values, strict=True):
            adjusted[place] = replace(rows[place], p=p)
    return adjusted
