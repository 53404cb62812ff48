"""Metrics and paired tests against references, brute force and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from featemb.benchmarks import metrics, stats
from featemb.errors import RunError

Array = npt.NDArray[np.float64]


def clicks(rows: int, seed: int, digits: int = 3) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.3).astype(float)
    label[:2] = [0, 1]
    score = 1 / (1 + np.exp(-(random.normal(size=rows) + 1.2 * label - 1)))
    return label, np.round(score, digits)


@settings(deadline=None)
@given(st.integers(2, 80), st.integers(0, 1000), st.integers(0, 3))
def test_auc_and_logloss_are_sklearns(rows: int, seed: int, digits: int) -> None:
    label, score = clicks(rows, seed, digits)
    assert metrics.auc(label, score) == pytest.approx(roc_auc_score(label, score))
    clipped = np.clip(score, metrics.CLIP, 1 - metrics.CLIP)
    assert metrics.logloss(label, score) == pytest.approx(log_loss(label, clipped))


def plain_delong(label: Array, one: Array, two: Array) -> tuple[float, float]:
    """Difference and its variance by all pairs, O(m n)."""
    values = []
    for score in (one, two):
        positive, negative = score[label == 1], score[label == 0]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        values.append((wins.mean(1), wins.mean(0)))
    by_positive, by_negative = values[0][0] - values[1][0], values[0][1] - values[1][1]
    variance = by_positive.var(ddof=1) / len(by_positive)
    return by_positive.mean(), variance + by_negative.var(ddof=1) / len(by_negative)


@pytest.mark.parametrize("digits", [1, 2, 8])
def test_delong_is_the_sum_over_all_pairs(digits: int) -> None:
    label, one = clicks(400, 1, digits)
    two = np.round(np.clip(one + np.random.default_rng(2).normal(size=400) * 0.1, 0, 1), digits)
    value, variance = plain_delong(label, one, two)
    found = stats.delong(label, one, two)
    assert found.value == pytest.approx(value)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


def test_delong_of_one_auc_covers_it() -> None:
    inside = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        label = np.repeat([0.0, 1.0], 100)
        found = metrics.auc_interval(label, random.normal(size=200) + label)
        inside += found["low"] <= 0.7602 <= found["high"]  # Phi(1 / sqrt 2)
    assert 180 <= inside <= 199


def test_equal_runs_do_not_differ() -> None:
    label, score = clicks(300, 3)
    same = stats.delong(label, score, score)
    assert (same.value, same.p) == (0, 1)
    assert stats.bootstrap_auc(label, score, score).p == 1


def test_the_bootstrap_agrees_with_delong() -> None:
    label, one = clicks(3000, 4)
    two = np.clip(one + np.random.default_rng(5).normal(size=3000) * 0.08, 0, 1)
    exact, drawn = stats.delong(label, one, two), stats.bootstrap_auc(label, one, two, 400)
    assert drawn.value == pytest.approx(exact.value)
    assert drawn.low == pytest.approx(exact.low, abs=0.25 * (exact.high - exact.low))
    assert drawn.high == pytest.approx(exact.high, abs=0.25 * (exact.high - exact.low))
    losses = stats.bootstrap_logloss(label, one, two)
    wanted = metrics.logloss(label, one) - metrics.logloss(label, two)
    assert losses.value == pytest.approx(wanted)


def test_gauc_is_the_weighted_mean_over_users() -> None:
    label, score = clicks(2000, 6, 1)
    users = np.random.default_rng(7).integers(0, 90, 2000) * 10
    total = weight = skipped = 0.0
    for user in np.unique(users):
        mine = users == user
        if 0 < label[mine].sum() < mine.sum():
            total += roc_auc_score(label[mine], score[mine]) * mine.sum()
            weight += mine.sum()
        else:
            skipped += 1
    found = metrics.gauc(label, score, users)
    assert found is not None
    assert found["value"] == pytest.approx(total / weight)
    assert found["low"] < found["value"] < found["high"]
    assert found["skipped"] == skipped
    assert metrics.gauc(label, score, np.arange(2000)) is None


def test_calibration() -> None:
    label = np.array([0.0, 1.0, 0.0, 1.0])
    assert metrics.calibration(label, np.full(4, 0.25)) == 0.5
    assert metrics.ece(label, np.array([0.0, 1.0, 0.0, 1.0])) == 0
    assert metrics.ece(label, np.full(4, 0.25), bins=1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("label", "score", "words"),
    [
        ([0, 1], [0.5, np.nan], "not finite"),
        ([1, 1], [0.5, 0.5], "both classes"),
        ([0, 0], [0.5, 0.5], "both classes"),
        ([], [], "both classes"),
        ([0, 2], [0.5, 0.5], "0 or 1"),
        ([0, 1, 1], [0.5, 0.5], "must be two"),
    ],
)
def test_bad_scores_are_refused(label: list[float], score: list[float], words: str) -> None:
    with pytest.raises(RunError, match=words):
        metrics.summarise(np.array(label), np.array(score))


def test_holm_is_its_rule() -> None:
    assert stats.holm([]) == []
    p = [0.01, 0.04, 0.03, 0.5]
    ordered = sorted(range(4), key=lambda i: p[i])
    wanted = dict(
        zip(
            ordered,
            itertools.accumulate((p[i] * (4 - n) for n, i in enumerate(ordered)), max),
            strict=True,
        )
    )
    assert stats.holm(p) == pytest.approx([min(1, wanted[i]) for i in range(4)])
