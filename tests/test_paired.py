"""The paired estimate over seeds and test rows: closed forms, references, planted truth."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats as scipy_stats
from scipy.special import ndtr

from featemb.benchmarks import stats
from featemb.benchmarks.paired import (
    Estimate,
    Scored,
    auc_parts,
    combine,
    estimate,
    gauc_parts,
    logloss_parts,
)
from featemb.errors import RunError

Array = npt.NDArray[np.float64]


def scored(rows: Array) -> Scored:
    return Scored(float(rows.mean()), (rows,), len(rows))


def clicks(seed: int, rows: int = 500) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.4).astype(float)
    return label, 1 / (1 + np.exp(-random.normal(size=rows) - label))


def test_one_seed_is_delongs_test() -> None:
    label, one = clicks(0)
    two = np.clip(one + np.random.default_rng(1).normal(size=500) * 0.1, 0, 1)
    mine = estimate([auc_parts(label, one) - auc_parts(label, two)])
    reference = stats.delong(label, one, two)
    wanted = (reference.value, reference.low, reference.high, reference.p)
    assert (mine.value, mine.low, mine.high, mine.p) == pytest.approx(wanted)
    assert math.isinf(mine.freedom)
    assert mine.note == "one seed: training noise not counted"
    assert mine.rows == 500


def test_one_seed_of_logloss_is_the_paired_z_test() -> None:
    label, one = clicks(0)
    two = np.clip(one + np.random.default_rng(1).normal(size=500) * 0.1, 0.01, 0.99)
    mine = estimate([logloss_parts(label, one) - logloss_parts(label, two)])
    losses = -np.log(np.where(label == 1, one / two, (1 - one) / (1 - two)))
    error = losses.std(ddof=1) / np.sqrt(500)
    assert mine.value == pytest.approx(losses.mean())
    assert mine.p == pytest.approx(2 * scipy_stats.norm.sf(abs(losses.mean()) / error))


def test_without_row_noise_it_is_students_t_test() -> None:
    values = [0.010, 0.012, 0.017, 0.011]
    mine = combine(values, 0.0, 100)
    reference = scipy_stats.ttest_1samp(values, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert mine.p == pytest.approx(reference.pvalue)
    assert (mine.low, mine.high) == pytest.approx((low, high))
    assert mine.freedom == 3
    two = combine(values[:2], 0.0, 100)
    assert two.p == pytest.approx(scipy_stats.ttest_1samp(values[:2], 0.0).pvalue, rel=1e-6)


def test_seeds_are_averaged_row_by_row_before_the_variance() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(3, 50))
    mine = estimate([scored(one) for one in rows])
    seeds = rows.mean(axis=1).var(ddof=1) / 3
    shared = rows.mean(axis=0).var(ddof=1) / 50
    assert mine.error == pytest.approx(math.sqrt(seeds + shared))
    assert mine.freedom == pytest.approx(2 * (seeds + shared) ** 2 / seeds**2)


def test_rows_that_seeds_share_are_counted_once() -> None:
    rows = np.random.default_rng(4).normal(size=80)
    one, five = estimate([scored(rows)]), estimate([scored(rows)] * 5)
    assert five.error == pytest.approx(one.error), "copies of a seed tell nothing of the rows"
    assert math.isinf(five.freedom)


def test_two_seeds_take_cochrans_weighted_point() -> None:
    mine = combine([0.01, 0.03], 1e-4, 100)
    seeds = np.var([0.01, 0.03], ddof=1) / 2
    point = (seeds * scipy_stats.t.ppf(0.975, 1) + 1e-4 * scipy_stats.norm.ppf(0.975)) / (
        seeds + 1e-4
    )
    assert (mine.high - mine.low) / 2 == pytest.approx(point * math.sqrt(seeds + 1e-4))
    assert math.isinf(combine([0.02, 0.02], 1e-4, 100).freedom)


def test_gauc_draws_users() -> None:
    random = np.random.default_rng(5)
    label, score = clicks(5, 4000)
    users = random.integers(0, 300, 4000)
    found = gauc_parts(label, score, users)
    assert found is not None
    mine = estimate([found])
    mine_rows = [users == user for user in range(300)]
    each = [(label[one], score[one]) for one in mine_rows if 0 < label[one].sum() < one.sum()]
    values = np.array([auc_parts(*rows).value for rows in each])
    weights = np.array([len(rows[0]) for rows in each])
    draws = random.integers(len(each), size=(2000, len(each)))
    means = (values * weights)[draws].sum(1) / weights[draws].sum(1)
    assert mine.value == pytest.approx((values * weights).sum() / weights.sum())
    assert mine.error == pytest.approx(means.std(), rel=0.08)


def test_equal_runs_do_not_differ() -> None:
    label, score = clicks(6)
    same = auc_parts(label, score) - auc_parts(label, score)
    found = estimate([same, same, same])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.detectable == 0


@pytest.mark.parametrize("freedom", [math.inf, 3.7])
def test_an_estimate_is_json_and_turns_round(freedom: float) -> None:
    one = Estimate(0.2, 0.1, 0.3, 0.01, 0.05, freedom, 3, 100)
    assert Estimate.from_dict(one.to_dict()) == one
    back = one.reversed()
    assert (back.value, back.low, back.high) == (-0.2, -0.3, -0.1)
    assert back.reversed() == one


def test_other_rows_are_refused() -> None:
    label, score = clicks(7)
    with pytest.raises(RunError, match="cannot be paired"):
        auc_parts(label, score) - auc_parts(label[:400], score[:400])
    with pytest.raises(RunError, match="same rows"):
        estimate([auc_parts(label, score), auc_parts(label[:400], score[:400])])
    with pytest.raises(RunError, match="no seed"):
        estimate([])


# How much seeds and test rows vary, as standard deviations of the difference of logits.
NOISE = {"seeds": (0.12, 0.5), "rows": (0.02, 0.9), "both": (0.06, 0.7)}


def planted(
    kind: str, seeds: int, repeats: int, effect: float, rows: int = 200
) -> tuple[list[Estimate], list[Estimate], float, float]:
    """Draw experiments; return estimates of AUC and LogLoss, and the true differences.

    The score of a row is z + a(row) + b(seed) * w(row), where a is a fixed function of the test row
    that both methods see differently, and b(seed) how well a training went: a factor on the
    signal, so that seeds differ in AUC and LogLoss on all test rows alike.
    """
    by_seed, by_row = NOISE[kind]
    random = np.random.default_rng([seeds, len(kind)])

    def draw(count: int, gains: Array) -> tuple[Array, Array, Array]:
        label = (random.random(count) < 0.5).astype(float)
        signal = label * 1.4 - 0.7
        common = random.normal(size=count)
        noise = by_row * random.normal(size=(2, count))
        both = [
            signal * (1 + gain)[:, None] + common + own
            for gain, own in zip(gains, noise, strict=True)
        ]
        return label, both[0], both[1]

    def gains(count: int) -> Array:
        made = by_seed * random.normal(size=(2, count))
        made[0] += effect
        return made

    def differences(label: Array, one: Array, two: Array) -> tuple[list[Scored], list[Scored]]:
        pairs = list(zip(ndtr(one), ndtr(two), strict=True))
        auc = [auc_parts(label, a) - auc_parts(label, b) for a, b in pairs]
        loss = [logloss_parts(label, a) - logloss_parts(label, b) for a, b in pairs]
        return auc, loss

    found: tuple[list[Estimate], list[Estimate]] = ([], [])
    for _ in range(repeats):
        for kept, parts in zip(found, differences(*draw(rows, gains(seeds))), strict=True):
            kept.append(estimate(parts))
    # the truth: many trainings on many rows
    truths = differences(*draw(6000, gains(500)))
    return (*found, *(float(np.mean([one.value for one in truth])) for truth in truths))


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_planted_truth(kind: str, seeds: int) -> None:
    """400 experiments: a share of 95% has a standard error of 1.1%."""
    *found, auc, loss = planted(kind, seeds, 400, effect=0.25)
    for estimates, truth in zip(found, (auc, loss), strict=True):
        covered = np.mean([one.low <= truth <= one.high for one in estimates])
        assert 0.91 <= covered <= 0.995


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("seeds", [2, 3])
def test_no_difference_is_rarely_shown(kind: str, seeds: int) -> None:
    *found, _, _ = planted(kind, seeds, 400, effect=0.0)
    for estimates in found[:2]:
        shown = np.mean([one.p < 0.05 for one in estimates])
        assert shown <= 0.085


def test_tests_that_leave_a_source_out_fail_there() -> None:
    """The two plain tests are wrong where the other source of noise is: why both are counted."""
    by_rows, _, _, _ = planted("rows", 3, 300, effect=0.0)
    values = [one.value / one.error for one in by_rows]
    assert np.std(values) == pytest.approx(1.0, abs=0.12)
    by_seed, _, _, _ = planted("seeds", 1, 300, effect=0.0)
    assert np.mean([one.p < 0.05 for one in by_seed]) > 0.15, "one seed: training is not counted"


def test_detectable_is_shown_in_four_of_five_cases() -> None:
    random = np.random.default_rng(9)
    rows, error = 400, 0.05
    wanted = combine([0.0], error**2, rows).detectable
    assert wanted == pytest.approx(error * 2.8016, rel=1e-3)
    draws = random.normal(wanted, error, size=4000)
    shown = np.mean([combine([draw], error**2, rows).p < 0.05 for draw in draws])
    assert shown == pytest.approx(0.8, abs=0.02)
