"""One estimate for a metric, or a difference of it, over the same test rows and several seeds.

Shape letters: N test rows, S seeds. A metric is taken apart into what each test row adds to it
(`Scored`), so that seeds can be averaged row by row before any variance is taken. Then

    Var = s^2(D_1 .. D_S) / S  +  sum over parts of s^2(mean over seeds of the rows' parts) / rows

for the values D_s of the seeds: the first term is training (initial values, order of the data), the
second the choice of test rows, which all seeds share and which is therefore counted once. For a
difference of AUCs the parts are DeLong's placement values of the positives and of the negatives,
first run minus second. What a seed does to single rows is in both terms, so that the sum is a
little too large, by that share of one seed's row variance over S.

The first term has S - 1 degrees of freedom, the second as many as there are rows. For three seeds
or more they are put together by Satterthwaite (1946):

    nu = (S - 1) Var^2 / (s^2 / S)^2

Two seeds are too few for it: in simulation it shows a difference that is not there in up to 12% of
the cases at a nominal 5%. There nu is that of Student's t whose 97.5% point is the mean of those of
1 degree and of the normal distribution, weighted by the two terms (Cochran and Cox, 1957). One seed
has the second term alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from featemb.benchmarks.metrics import (
    Array,
    Floats,
    check,
    group_aucs,
    placements,
    row_logloss,
    variance_of_mean,
)
from featemb.benchmarks.stats import Difference
from featemb.errors import RunError

_TAIL = 0.975
_POWER = 0.8
_MANY = 1e9  # degrees of freedom from which on Student's t is the normal distribution


@dataclass(frozen=True)
class Scored:
    """A metric of one run, or the difference of two, taken apart by test rows.

    Attributes:
        value: the metric.
        parts: arrays of rows whose means have independent errors; the variance of the metric is
            the sum of the variances of these means.
        rows: number of test rows.
    """

    value: float
    parts: tuple[Floats, ...]
    rows: int

    def __sub__(self, other: Scored) -> Scored:
        """Return the difference of two runs on the same rows.

        Raises:
            RunError: the parts have other sizes, so the rows cannot be the same.
        """
        if [len(part) for part in self.parts] != [len(part) for part in other.parts]:
            raise RunError(f"runs on {self.rows} and on {other.rows} test rows cannot be paired")
        parts = tuple(one - two for one, two in zip(self.parts, other.parts, strict=True))
        return Scored(self.value - other.value, parts, self.rows)


def auc_parts(labels: Array, scores: Array) -> Scored:
    """AUC, with the placement values of DeLong et al. (1988) of positives and negatives."""
    below, above = placements(*check(labels, scores))
    return Scored(float(below.mean()), (below, above), len(below) + len(above))


def logloss_parts(labels: Array, scores: Array) -> Scored:
    """LogLoss, with the loss of each row."""
    losses = row_logloss(*check(labels, scores))
    return Scored(float(losses.mean()), (losses,), len(losses))


def gauc_parts(labels: Array, scores: Array, groups: Array) -> Scored | None:
    """AUC by group (user), weighted by the group's rows; groups are what is drawn.

    The part of a group is its weight times its distance from the mean: the error of a ratio of sums
    to first order.

    Returns:
        None where no group has both classes.
    """
    values, weights = group_aucs(labels, scores, groups)
    if not len(values):
        return None
    value = float((values * weights).sum() / weights.sum())
    return Scored(value, (weights * (values - value) / weights.mean(),), len(labels))


@dataclass(frozen=True)
class Estimate(Difference):
    """A metric or a difference with the uncertainty of test rows and of training.

    Attributes:
        error: standard error.
        freedom: degrees of freedom of Student's t; infinite is the normal distribution.
        seeds: number of seeds; with one, training noise is not counted.
        rows: number of test rows.
    """

    error: float
    freedom: float
    seeds: int
    rows: int

    @property
    def note(self) -> str:
        """What the interval leaves out, or "" ."""
        return "one seed: training noise not counted" if self.seeds == 1 else ""

    @property
    def detectable(self) -> float:
        """The smallest true difference that such a comparison shows in 80% of all cases."""
        return self.error * (_point(_TAIL, self.freedom) + _point(_POWER, self.freedom))

    def reversed(self) -> Estimate:
        """Return the difference the other way round."""
        changed = self.to_dict() | {"value": -self.value, "low": -self.high, "high": -self.low}
        return Estimate.from_dict(changed)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; infinitely many degrees of freedom are null."""
        finite = math.isfinite(self.freedom)
        return {**vars(self), "freedom": self.freedom if finite else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Estimate:
        """Read what `to_dict` gives."""
        freedom = math.inf if values["freedom"] is None else values["freedom"]
        return cls(**{**values, "freedom": freedom})


def estimate(seeds: Sequence[Scored]) -> Estimate:
    """Return the mean over seeds with its interval and p-value; the formula is above.

    Args:
        seeds: one a seed, all on the same test rows.

    Raises:
        RunError: there is none, or their rows differ.
    """
    if not seeds:
        raise RunError("there is no seed to take a mean over")
    sizes = {tuple(len(part) for part in one.parts) for one in seeds}
    if len(sizes) > 1:
        raise RunError("the seeds were not tested on the same rows")
    averaged = [np.mean(part, axis=0) for part in zip(*(one.parts for one in seeds), strict=True)]
    rows = sum(variance_of_mean(part) for part in averaged)
    return combine([one.value for one in seeds], rows, seeds[0].rows)


def combine(values: Sequence[float], row_variance: float, rows: int) -> Estimate:
    """Return the estimate from the seeds' values and the variance that the test rows add."""
    count = len(values)
    between = float(np.var(values, ddof=1)) / count if count > 1 else 0.0
    mean, error = float(np.mean(values)), math.sqrt(between + row_variance)
    freedom = _freedom(between, row_variance, count)
    if error == 0:
        return Estimate(mean, mean, mean, float(mean == 0), 0.0, freedom, count, rows)
    reach = _point(_TAIL, freedom) * error
    below = -abs(mean) / error
    p = 2 * float(special.ndtr(below) if math.isinf(freedom) else special.stdtr(freedom, below))
    return Estimate(mean, mean - reach, mean + reach, p, error, freedom, count, rows)


def from_intervals(
    seeds: Sequence[Mapping[str, float]], rows: int, top: float = math.inf
) -> Estimate:
    """Return the mean of a metric over seeds from the values and 95% intervals in their records.

    The records hold the row variance of each seed and not of their mean, which is at most the
    mean of these: that takes its place.

    Args:
        seeds: value, low and high of each.
        rows: number of test rows.
        top: the largest possible value; the smallest is 0.
    """
    width = 2 * _point(_TAIL, math.inf)
    variances = [((one["high"] - one["low"]) / width) ** 2 for one in seeds]
    found = combine([one["value"] for one in seeds], float(np.mean(variances)), rows)
    return replace(found, low=max(0.0, found.low), high=min(top, found.high))


def _freedom(between: float, rows: float, seeds: int) -> float:
    """Return the degrees of freedom of the sum of both variances."""
    share = between / (between + rows) if between > 0 else 0.0
    if share**2 * _MANY < seeds:
        return math.inf
    if seeds > 2:
        return (seeds - 1) / share**2
    wanted = share * _point(_TAIL, 1) + (1 - share) * _point(_TAIL, math.inf)
    if wanted <= _point(_TAIL, _MANY):
        return math.inf
    return float(optimize.brentq(lambda nu: _point(_TAIL, nu) - wanted, 1.0, _MANY))


def _point(share: float, freedom: float) -> float:
    """Return the point of Student's t that a share lies below."""
    infinite = math.isinf(freedom)
    return float(special.ndtri(share) if infinite else special.stdtrit(freedom, share))
