"""AUC, LogLoss, gAUC and calibration, with 95% intervals.

Shape letters: N rows. Labels are 0 or 1, scores are probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featemb.errors import RunError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
CLIP = 1e-7
_Z = 1.959963984540054


def check(labels: Array, scores: Array) -> tuple[Floats, Floats]:
    """Return labels and scores as float64 ``[N]``.

    Raises:
        RunError: shapes differ, labels are not 0 and 1 both, or a score is not finite.
    """
    label, score = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise RunError(f"labels and scores must be two [N], got {label.shape} and {score.shape}")
    if not np.isfinite(score).all():
        raise RunError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    if not ((label == 0) | (label == 1)).all():
        raise RunError("labels must be 0 or 1")
    if label.min(initial=1) == label.max(initial=0) or not len(label):
        raise RunError(f"AUC needs both classes, all {len(label)} labels are of one")
    return label, score


def placements(label: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Return the placement values of DeLong et al. (1988).

    For each positive, the share of negatives below it; for each negative, the share of positives
    above it; ties count half. One sort of all scores: O(N log N), as Sun and Xu's (2014) mid-ranks.
    """
    order = np.argsort(score)
    ordered, is_positive = score[order], label[order] == 1
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ties = np.diff(np.r_[starts, len(ordered)])
    share = np.empty_like(ordered)
    for mine, sign in ((is_positive, 1), (~is_positive, -1)):
        others = np.add.reduceat(~mine, starts, dtype=np.int64)
        below = np.repeat(np.cumsum(others) - others / 2, ties)
        total = others.sum()
        share[mine] = (below[mine] if sign > 0 else total - below[mine]) / total
    placed = np.empty_like(share)
    placed[order] = share
    return placed[label == 1], placed[label == 0]


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve; ties count half.

    The sum of the positives' mid-ranks, by one sort: searches compute it for many candidates.
    """
    label, score = check(labels, scores)
    order = np.argsort(score)
    ordered = score[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(ordered))
    positives = np.diff(np.cumsum(label[order])[ends - 1], prepend=0.0)
    middle = (ends + np.append(0, ends[:-1]) + 1) / 2
    count = positives.sum()
    area = (positives * middle).sum() - count * (count + 1) / 2
    return float(area / (count * (len(label) - count)))


def row_logloss(label: Floats, score: Floats) -> Floats:
    """Return the cross-entropy of each row; probabilities are clipped to [1e-7, 1 - 1e-7]."""
    clipped = np.clip(score, CLIP, 1 - CLIP)
    loss: Floats = -(label * np.log(clipped) + (1 - label) * np.log1p(-clipped))
    return loss


def logloss(labels: Array, scores: Array) -> float:
    """Mean cross-entropy, in nats."""
    return float(row_logloss(*check(labels, scores)).mean())


def auc_interval(labels: Array, scores: Array) -> dict[str, float]:
    """AUC with its 95% interval by DeLong's variance (DeLong et al., 1988)."""
    below, above = placements(*check(labels, scores))
    value = float(below.mean())
    variance = variance_of_mean(below) + variance_of_mean(above)
    return _interval(value, float(np.sqrt(variance)), 0.0, 1.0)


def variance_of_mean(values: Floats) -> float:
    """Return the variance of the mean of some values; 0 of a single one."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0


def _interval(value: float, error: float, low: float, high: float) -> dict[str, float]:
    return {
        "value": value,
        "low": max(low, value - _Z * error),
        "high": min(high, value + _Z * error),
    }


def logloss_interval(labels: Array, scores: Array) -> dict[str, float]:
    """LogLoss with its 95% interval by the normal approximation of a mean."""
    losses = row_logloss(*check(labels, scores))
    return _interval(float(losses.mean()), float(np.sqrt(variance_of_mean(losses))), 0.0, np.inf)


def group_aucs(labels: Array, scores: Array, groups: Array) -> tuple[Floats, Floats]:
    """Return the AUC and the row count of every group that has both classes."""
    label, score = check(labels, scores)
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.lexsort((score, group))
    label, score, group = label[order], score[order], group[order]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[starts, len(group)])
    # mid-ranks inside a group: mean position of a run of equal scores
    fresh = np.r_[True, (group[1:] != group[:-1]) | (score[1:] != score[:-1])]
    run = np.cumsum(fresh) - 1
    first = np.flatnonzero(fresh)
    last = np.r_[first[1:], len(group)] - 1
    rank = (first + last)[run] / 2 - np.repeat(starts, sizes) + 1
    positives = np.add.reduceat(label, starts)
    negatives = sizes - positives
    rank_sum = np.add.reduceat(rank * label, starts)
    both = (positives > 0) & (negatives > 0)
    wins = rank_sum[both] - positives[both] * (positives[both] + 1) / 2
    values: Floats = wins / (positives[both] * negatives[both])
    return values, sizes[both].astype(np.float64)


def gauc(
    labels: Array, scores: Array, groups: Array, resamples: int = 1000
) -> dict[str, Any] | None:
    """AUC by group (user), weighted by the group's rows; 95% interval by a bootstrap over groups.

    Groups of one class have no AUC and are left out; ``groups`` and ``skipped`` count them.

    Returns:
        None where no group has both classes.
    """
    values, weights = group_aucs(labels, scores, groups)
    total = len(np.unique(groups))
    if not len(values):
        return None
    random = np.random.default_rng(0)
    draws = np.empty(resamples)
    for number in range(resamples):
        times = np.bincount(random.integers(len(values), size=len(values)), minlength=len(values))
        draws[number] = (values * weights * times).sum() / (weights * times).sum()
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "value": float((values * weights).sum() / weights.sum()),
        "low": float(low),
        "high": float(high),
        "groups": len(values),
        "skipped": total - len(values),
    }


def calibration(labels: Array, scores: Array) -> float:
    """Mean prediction over mean label: 1 is calibrated in the large."""
    label, score = check(labels, scores)
    return float(score.mean() / label.mean())


def ece(labels: Array, scores: Array, bins: int = 20) -> float:
    """Expected calibration error over bins of equal mass."""
    label, score = check(labels, scores)
    order = np.argsort(score, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(score[part].mean() - label[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(label))


def summarise(labels: Array, scores: Array, groups: Array | None = None) -> dict[str, Any]:
    """Return all metrics of a split, in the shape of a run's record."""
    return {
        "auc": auc_interval(labels, scores),
        "logloss": logloss_interval(labels, scores),
        "gauc": None if groups is None else gauc(labels, scores, groups),
        "calibration": calibration(labels, scores),
        "ece": ece(labels, scores),
        "rows": len(labels),
    }
