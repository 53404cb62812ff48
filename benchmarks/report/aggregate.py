"""From records to the rows of a report: seeds together, differences to the references."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featemb.benchmarks.grid import REFERENCE
from featemb.benchmarks.groups import BASELINE, Group, asked_size, group_runs
from featemb.benchmarks.paired import from_intervals
from featemb.benchmarks.pairs import Compared, Pairing
from featemb.benchmarks.stats import Difference, holm
from featemb.benchmarks.stored_pairs import Results, results

ALPHA = 0.05
Record = Mapping[str, Any]

__all__ = ["ALPHA", "Against", "Interval", "Row", "aggregate", "asked_size"]


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Against:
    """A row's runs against a reference's, paired by seed and test row.

    Attributes:
        compared: differences in AUC, LogLoss and gAUC; none where the rows differ.
        p: p-value of the difference in AUC, adjusted by Holm's rule over the rows of the same
            data set and model against the same reference.
        logloss_p: the same for LogLoss.
    """

    compared: Compared
    p: float | None = None
    logloss_p: float | None = None

    @property
    def verdict(self) -> str:
        """The difference in AUC in a plain word."""
        if self.compared.auc is None or self.p is None:
            return self.compared.reason or "not tested"
        if self.p >= ALPHA:
            return "no difference shown"
        return "better" if self.compared.auc.value > 0 else "worse"


@dataclass(frozen=True)
class Row:
    """The runs of one data set, model, method, size and settings, over their seeds.

    Attributes:
        data: data set.
        model: model.
        method: spec text.
        asked: size asked for: "10x", "2 MB" or "-".
        settings: the settings in which rows of the same method and size differ, usually none.
        runs: run ids.
        seeds: number of finished runs.
        serving: serving bytes.
        training: training bytes.
        ratio: bytes of the full table / serving bytes.
        parts: serving bytes by part.
        auc: test AUC, mean over seeds; its interval counts test rows and, from two seeds on,
            training.
        logloss: test LogLoss, likewise.
        gauc: test gAUC, likewise, or None.
        calibration: mean prediction / mean label, mean over seeds.
        epochs: epochs run, mean over seeds.
        seconds: seconds of training, mean over seeds.
        step_ms: median training step in ms, median over seeds.
        rows_per_second: training rows a second, median over seeds.
        to_full: against the full table; None for itself, or where it is not compared.
        to_hash: against plain hashing of the same asked size, likewise.
    """

    data: str
    model: str
    method: str
    asked: str
    settings: Mapping[str, Any]
    runs: tuple[str, ...]
    seeds: int
    serving: int
    training: int
    ratio: float
    parts: Mapping[str, int]
    auc: Interval
    logloss: Interval
    gauc: Interval | None
    calibration: float
    epochs: float
    seconds: float
    step_ms: float
    rows_per_second: float
    to_full: Against | None = None
    to_hash: Against | None = None

    @property
    def label(self) -> str:
        """The method, and the settings that set this row apart."""
        apart = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.method} [{apart}]" if apart else self.method

    @property
    def is_full(self) -> bool:
        """Whether this is the full table, the reference."""
        return self.method == REFERENCE and self.asked == "-"

    @property
    def difference(self) -> Difference | None:
        """Test AUC minus the full table's."""
        return None if self.to_full is None else self.to_full.compared.auc

    @property
    def p(self) -> float | None:
        """The p-value of that difference by Holm's rule."""
        return None if self.to_full is None else self.to_full.p

    @property
    def verdict(self) -> str:
        """The difference to the full table in a plain word."""
        if self.to_full is None:
            return "reference" if self.is_full else "not tested"
        return self.to_full.verdict


def aggregate(runs_dir: str | Path, records: Iterable[Record]) -> list[Row]:
    """Return the rows of all finished runs: by data set and model, largest first.

    Comparisons are made from predictions, or else read from ``paired.json``.

    Raises:
        RunError: ``paired.json`` is needed and stale (`featemb.benchmarks.stored_pairs`).
    """
    found = list(records)
    groups = group_runs(found)
    compared = _adjusted(results(runs_dir, found))
    apart = _apart(groups)
    rows = [
        replace(
            _row(group, apart[group.names()]),
            to_full=_against(group, REFERENCE, compared),
            to_hash=_against(group, BASELINE, compared),
        )
        for group in groups
    ]
    return sorted(rows, key=lambda row: (row.data, row.model, -row.serving, row.label))


def _against(
    group: Group, reference: str, compared: Mapping[tuple[str, str], Against]
) -> Against | None:
    """Return a group's comparison; it may leave out seeds that the reference lacks."""
    found = (compared.get((name, reference)) for name in group.names())
    return next((one for one in found if one is not None), None)


def _apart(groups: Sequence[Group]) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return, by run ids, the settings in which groups of one method and size differ."""
    alike: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        key = (group.data, group.model, group.method, group.asked)
        alike.setdefault(key, []).append(group)
    found = {}
    for same in alike.values():
        settings = [json.loads(group.settings) | {"data": group.fingerprint} for group in same]
        names = dict.fromkeys(name for one in settings for name in one)
        differ = [n for n in names if len({json.dumps(one.get(n)) for one in settings}) > 1]
        for group, own in zip(same, settings, strict=True):
            found[group.names()] = {name: own.get(name) for name in differ}
    return found


def _row(group: Group, settings: Mapping[str, Any]) -> Row:
    records = list(group.runs.values())
    test = [record["metrics"]["test"] for record in records]
    sizes = [record["bytes"] for record in records]
    return Row(
        data=group.data,
        model=group.model,
        method=group.method,
        asked=group.asked,
        settings=settings,
        runs=group.names(),
        seeds=len(records),
        serving=max(size["serving"] for size in sizes),
        training=max(size["training"] for size in sizes),
        ratio=min(size["ratio"] for size in sizes),
        parts=sizes[0]["parts"],
        auc=_interval(test, "auc", 1.0),
        logloss=_interval(test, "logloss", math.inf),
        gauc=_interval(test, "gauc", 1.0) if test[0].get("gauc") else None,
        calibration=statistics.mean(one["calibration"] for one in test),
        epochs=statistics.mean(record["training"]["epochs_run"] for record in records),
        seconds=statistics.mean(_seconds(record["timings"]) for record in records),
        step_ms=statistics.median(record["timings"]["step_ms"] for record in records),
        rows_per_second=statistics.median(r["timings"]["rows_per_second"] for r in records),
    )


def _seconds(timings: Mapping[str, float]) -> float:
    return timings.get("train", timings["total"])


def _interval(tests: Sequence[Mapping[str, Any]], name: str, top: float) -> Interval:
    """Return the mean of seeds with its interval, from the intervals in their records."""
    found = from_intervals([test[name] for test in tests], tests[0]["rows"], top)
    return Interval(found.value, found.low, found.high)


def _adjusted(compared: Results) -> dict[tuple[str, str], Against]:
    """Adjust the p-values within each data set, model and reference; by run id and reference."""
    families: dict[tuple[str, str, str], list[Pairing]] = {}
    for pair in compared:
        families.setdefault((pair.data, pair.model, pair.reference), []).append(pair)
    found: dict[tuple[str, str], Against] = {}
    for pairs in families.values():
        tested = [pair for pair in pairs if compared[pair].auc is not None]
        auc = holm([one.p for pair in tested if (one := compared[pair].auc)])
        loss = holm([one.p for pair in tested if (one := compared[pair].logloss)])
        p = {pair: values for pair, *values in zip(tested, auc, loss, strict=True)}
        for pair in pairs:
            against = Against(compared[pair], *p.get(pair, ()))
            found |= {(name, pair.reference): against for name in pair.runs}
    return found
