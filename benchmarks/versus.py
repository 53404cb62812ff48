"""Selected runs against each other: paired tests, Holm's correction, and what they say in words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featemb.benchmarks import stored_pairs
from featemb.benchmarks.paired import Estimate, from_intervals
from featemb.benchmarks.pairs import Compared, Predictions, Tested, compare_tested
from featemb.benchmarks.selecting import Selection
from featemb.benchmarks.stats import holm
from featemb.errors import RunError

LEVELS = (0.001, 0.01, 0.05)
METRICS = {"auc": "AUC", "logloss": "LogLoss", "gauc": "gAUC"}


@dataclass(frozen=True)
class Versus:
    """Two selections compared, first minus second.

    Attributes:
        first: label of the first.
        second: label of the second.
        seeds: seeds of the pairs; two runs that are named may have different ones.
        compared: differences.
        p: p-values by metric; by Holm's rule over all pairs where there are several.
        pairs: number of comparisons that were made together.
    """

    first: str
    second: str
    seeds: tuple[tuple[int, int], ...]
    compared: Compared
    p: Mapping[str, float]
    pairs: int

    def verdict(self, metric: str) -> str:
        """Return what a comparison says, as a sentence."""
        one: Estimate | None = getattr(self.compared, metric)
        if one is None:
            return f"{METRICS[metric]}: not compared"
        p, name = self.p[metric], METRICS[metric]
        after = f"p {p_text(p)}" + (f" by Holm's rule over {self.pairs} pairs" * (self.pairs > 1))
        level = next((level for level in LEVELS if p < level), None)
        if level is None:
            return (
                f"{name}: not shown to differ at the 5% level ({after}). A true difference of "
                f"{one.detectable:.5f} would be shown by 80% of such comparisons."
            )
        higher = "higher" if one.value > 0 else "lower"
        return (
            f"{name}: the difference is real at the {level * 100:g}% level ({after}): "
            f"{self.first} is {higher} by {abs(one.value):.5f}, within "
            f"[{one.low:+.5f}, {one.high:+.5f}]."
        )


def p_text(p: float) -> str:
    """Return a p-value with its sign of equality; floating point ends near 1e-308."""
    return f"= {p:.2g}" if p >= 1e-99 else "< 1e-99"


def versus(selections: Sequence[Selection]) -> list[Versus]:
    """Compare all pairs of selections.

    Raises:
        RunError: fewer than two, no seed in common, other test rows, or no predictions.
    """
    if len(selections) < 2:
        raise RunError(f"a comparison needs two kinds of runs or more, got {len(selections)}")
    sources = {one.folder: Predictions(one.folder) for one in selections}
    pairs = list(itertools.combinations(selections, 2))
    seeds = [_seeds(one, two) for one, two in pairs]
    compared = [
        _compare(one, two, matched, sources)
        for (one, two), matched in zip(pairs, seeds, strict=True)
    ]
    adjusted = {name: _holm(compared, name) for name in METRICS}
    return [
        Versus(
            one.label,
            two.label,
            seeds[number],
            compared[number],
            {name: adjusted[name][number] for name in METRICS if number in adjusted[name]},
            len(pairs),
        )
        for number, (one, two) in enumerate(pairs)
    ]


def _seeds(one: Selection, two: Selection) -> tuple[tuple[int, int], ...]:
    """Return the pairs of seeds."""
    if one.single and two.single:
        return ((next(iter(one.runs)), next(iter(two.runs))),)
    shared = tuple((seed, seed) for seed in one.runs if seed in two.runs)
    if not shared:
        told = [", ".join(map(str, side.runs)) for side in (one, two)]
        raise RunError(
            f"{one.label} (seeds {told[0]}) and {two.label} (seeds {told[1]}) have no seed in "
            "common: runs are paired by seed"
        )
    return shared


def _compare(
    one: Selection,
    two: Selection,
    seeds: Sequence[tuple[int, int]],
    sources: Mapping[Path, Predictions],
) -> Compared:
    names = [one.runs[seed]["run_id"] for seed, _ in seeds]
    others = [two.runs[seed]["run_id"] for _, seed in seeds]
    if one.folder == two.folder and not sources[one.folder].has((*names, *others)):
        records = {run["run_id"]: run for side in (one, two) for run in side.runs.values()}
        stored = stored_pairs.find(one.folder, names, others, records)
        if stored is not None:
            return _same_rows(stored, one, two)
    first = [_tested(one, name, sources) for name in names]
    second = [_tested(two, name, sources) for name in others]
    if len({tested.digest for tested in (*first, *second)}) > 1:
        raise RunError(f"{one.label} and {two.label} were not tested on the same rows")
    return compare_tested(first, second)


def _same_rows(stored: Compared, one: Selection, two: Selection) -> Compared:
    if stored.reason:
        raise RunError(f"{one.label} and {two.label}: {stored.reason}")
    return stored


def _tested(side: Selection, name: str, sources: Mapping[Path, Predictions]) -> Tested:
    return sources[side.folder].tested(name)


def _holm(compared: Sequence[Compared], metric: str) -> dict[int, float]:
    """Return the adjusted p-values of a metric by the number of the pair."""
    raw = {
        number: one.p
        for number, result in enumerate(compared)
        if (one := getattr(result, metric)) is not None
    }
    return dict(zip(raw, holm(list(raw.values())), strict=True))


def metrics_of(selection: Selection) -> dict[str, Estimate | None]:
    """Return the test metrics of a selection's runs, each by itself."""
    tests = [record["metrics"]["test"] for record in selection.runs.values()]
    found: dict[str, Estimate | None] = {}
    for name in METRICS:
        values: list[dict[str, Any]] = [test[name] for test in tests if test.get(name)]
        top = float("inf") if name == "logloss" else 1.0
        found[name] = from_intervals(values, tests[0]["rows"], top) if values else None
    return found
