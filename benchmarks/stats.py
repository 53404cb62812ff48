"""Paired tests between two runs on the same test rows, and between many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats as scipy_stats

from featemb.benchmarks.metrics import (
    Array,
    Floats,
    check,
    placements,
    row_logloss,
    variance_of_mean,
)
from featemb.errors import RunError


@dataclass(frozen=True)
class Difference:
    """A difference between two runs, first minus second.

    Attributes:
        value: the difference.
        low: lower end of its 95% interval.
        high: upper end.
        p: two-sided p-value that it is zero.
    """

    value: float
    low: float
    high: float
    p: float


def delong(labels: Array, first: Array, second: Array) -> Difference:
    """Difference of two correlated AUCs on the same rows (DeLong et al., 1988).

    The variance is that of the mean of paired differences of placement values.
    """
    label, one = check(labels, first)
    _, two = check(labels, second)
    below_one, above_one = placements(label, one)
    below_two, above_two = placements(label, two)
    positives, negatives = below_one - below_two, above_one - above_two
    value = float(positives.mean())
    error = float(np.sqrt(variance_of_mean(positives) + variance_of_mean(negatives)))
    return _normal(value, error)


def _normal(value: float, error: float) -> Difference:
    if error == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    reach = float(scipy_stats.norm.ppf(0.975)) * error
    p = 2 * float(scipy_stats.norm.sf(abs(value) / error))
    return Difference(value, value - reach, value + reach, p)


def bootstrap_auc(
    labels: Array, first: Array, second: Array, resamples: int = 200, seed: int = 0
) -> Difference:
    """Paired bootstrap of a difference of AUCs: rows are drawn once for both runs.

    Rows drawn k times count as k rows, so that no draw sorts again: O(N) a draw after one sort.
    """
    label, one = check(labels, first)
    _, two = check(labels, second)
    random = np.random.default_rng(seed)
    runs = [_Sorted(label, one), _Sorted(label, two)]
    draws = np.empty(resamples)
    for number in range(resamples):
        times = np.bincount(random.integers(len(label), size=len(label)), minlength=len(label))
        draws[number] = runs[0].auc(times) - runs[1].auc(times)
    once = np.ones(len(label), np.int64)
    return _percentile(runs[0].auc(once) - runs[1].auc(once), draws)


class _Sorted:
    """Scores sorted once, for AUCs of weighted rows."""

    def __init__(self, label: Floats, score: Floats) -> None:
        self.order = np.argsort(score, kind="stable")
        self.label = label[self.order]
        ordered = score[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])

    def auc(self, times: Array) -> float:
        weight = times[self.order].astype(np.float64)
        positives = np.add.reduceat(weight * self.label, self.starts)
        negatives = np.add.reduceat(weight * (1 - self.label), self.starts)
        below = np.cumsum(negatives) - 0.5 * negatives
        return float((positives * below).sum() / (positives.sum() * negatives.sum()))


def bootstrap_logloss(
    labels: Array, first: Array, second: Array, resamples: int = 1000, seed: int = 0
) -> Difference:
    """Paired bootstrap of a difference of LogLoss."""
    label, one = check(labels, first)
    _, two = check(labels, second)
    rows = row_logloss(label, one) - row_logloss(label, two)
    random = np.random.default_rng(seed)
    draws = np.array(
        [rows[random.integers(len(rows), size=len(rows))].mean() for _ in range(resamples)]
    )
    return _percentile(float(rows.mean()), draws)


def _percentile(value: float, draws: Floats) -> Difference:
    low, high = np.percentile(draws, [2.5, 97.5])
    # a p-value of a bootstrap is never below 1 / (draws + 1)
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))
    return Difference(value, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of a family of tests by Holm's step-down rule (1979)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def predictions(folder: str | Path) -> tuple[Floats, Floats]:
    """Return labels and scores of a run's test rows.

    Raises:
        RunError: the run has no predictions.
    """
    path = Path(folder) / "predictions.parquet"
    if not path.is_file():
        raise RunError(f"{folder} has no predictions: the run failed or was not finished")
    table = pq.read_table(path, columns=["label", "score"])
    return (
        table.column("label").to_numpy().astype(np.float64),
        table.column("score").to_numpy().astype(np.float64),
    )
