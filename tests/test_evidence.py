"""What measured runs say of planned sizes: known curves, intervals, and what is not known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_folders import make, without_predictions

import featemb as fe
from featemb.benchmarks import stored_pairs
from featemb.benchmarks.evidence import Expected, Point, combine, curves, expect, rank, without_size
from featemb.errors import RunError

FULL = 0.8


def record(method: str, ratio: float | None, seed: int, auc: float, model: str = "fm") -> Any:
    reach = 0.004
    value = {"value": auc, "low": auc - reach, "high": auc + reach}
    config = {"data": "d", "model": model, "method": method, "ratio": ratio, "budget": None}
    return {
        "format": 1,
        "run_id": f"{model}-{method}-{ratio}-{seed}",
        "status": "ok",
        "error": None,
        "config": config | {"dim": 8, "seed": seed, "rows": None},
        "versions": {},
        "device": {},
        "created": "",
        "data": {"fingerprint": "f"},
        "bytes": {"ratio": ratio or 1.0},
        "timings": {},
        "training": {},
        "metrics": {"test": {"auc": value}},
    }


def write(folder: Path, records: list[Any]) -> Path:
    for one in records:
        (folder / one["run_id"]).mkdir(parents=True)
        (folder / one["run_id"] / "run.json").write_text(json.dumps(one))
    return folder


def sweep(loss: Any, ratios: list[float], seeds: int = 3, noise: float = 0.0, **names: Any) -> Any:
    random = np.random.default_rng(0)
    records = []
    for seed in range(seeds):
        full = FULL + 0.01 * seed  # a seed's level, which pairing takes away
        records.append(record("full", None, seed, full, **names))
        for ratio in ratios:
            auc = full - loss(ratio) + noise * float(random.normal())
            records.append(record("hash", ratio, seed, auc, **names))
    return records


def test_points_are_paired_by_seed(tmp_path: Path) -> None:
    write(tmp_path, sweep(lambda ratio: 0.01 * ratio, [2, 4]))
    (points,) = (methods["hash"] for methods in curves([tmp_path]).values())
    assert [(round(p.ratio, 9), p.seeds) for p in points] == [(2, 3), (4, 3)]
    np.testing.assert_allclose([p.loss for p in points], [0.02, 0.04])
    np.testing.assert_allclose([p.high - p.low for p in points], 0, atol=1e-12)


def test_intervals_are_those_of_paired_comparisons(tmp_path: Path) -> None:
    for seed in range(2):
        make(tmp_path, seed=seed)
        make(tmp_path, 2.0, method="hash", ratio=10.0, serving=100, seed=seed)
    ((unpaired,),) = (methods["hash"] for methods in curves([tmp_path]).values())
    _, compared = stored_pairs.store(tmp_path)
    (auc,) = (one.auc for pair, one in compared.items() if pair.reference == "full")
    assert auc is not None
    without_predictions(tmp_path)
    ((point,),) = (methods["hash"] for methods in curves([tmp_path]).values())
    assert point.loss == pytest.approx(unpaired.loss)
    assert (point.low, point.high) == (-auc.high, -auc.low)
    assert point.high - point.low != pytest.approx(unpaired.high - unpaired.low)


def test_between_points_the_curve_is_linear_in_log_ratio() -> None:
    points = [Point(2, 0.01, 0.008, 0.012, 3), Point(32, 0.05, 0.04, 0.06, 3)]
    found = expect(points, 8)
    assert found.basis == "interpolated"
    assert (found.loss, found.low, found.high) == pytest.approx((0.03, 0.024, 0.036))
    assert found.note == "between 2x and 32x, 3 seeds"
    assert expect(points, 2.02) == Expected(0.01, 0.008, 0.012, "measured", "3 seeds")


@pytest.mark.parametrize(("ratio", "loss"), [(64, 0.06), (1, 0.0), (128, 0.07)])
def test_beyond_the_points_it_is_a_guess(ratio: float, loss: float) -> None:
    points = [Point(2, 0.01, 0.008, 0.012, 3), Point(32, 0.05, 0.04, 0.06, 1)]
    found = expect(points, ratio)
    assert found.basis == "extrapolated"
    assert found.loss == pytest.approx(loss)
    assert found.low is None
    assert "times above 32x, 1 seed" in found.note or "2 times below 2x" in found.note


@pytest.mark.parametrize(("loss", "least"), [(0.001, 0.0), (-0.002, -0.002)])
def test_a_guess_promises_no_gain_that_was_not_measured(loss: float, least: float) -> None:
    points = [Point(10, loss, loss, loss, 3), Point(20, 0.02, 0.02, 0.02, 3)]
    assert expect(points, 2).loss == least


def test_one_point_and_none() -> None:
    found = expect([Point(10, 0.02, 0.01, 0.03, 3)], 40)
    assert (found.loss, found.basis) == (0.02, "extrapolated")
    assert expect([], 4) == Expected(None, None, None, "no evidence", "")


def test_left_out_sizes_are_found_again(tmp_path: Path) -> None:
    """Leave a ratio out of a known curve; the interval of the others holds the truth."""

    def loss(ratio: float) -> float:
        return 0.004 * math.log(ratio) ** 1.5

    ratios = [2, 4, 8, 16, 32, 64, 128]
    hits = 0
    for left_out in ratios[1:-1]:
        kept = [ratio for ratio in ratios if ratio != left_out]
        folder = write(tmp_path / str(left_out), sweep(loss, kept, seeds=4, noise=0.002))
        (points,) = (methods["hash"] for methods in curves([folder]).values())
        found = expect(points, left_out)
        assert found.basis == "interpolated"
        assert found.loss == pytest.approx(loss(left_out), abs=0.004)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= loss(left_out) <= found.high
    assert hits >= 4


def test_few_seeds_say_so(tmp_path: Path) -> None:
    write(tmp_path, sweep(lambda ratio: 0.01, [4], seeds=2))
    (points,) = (methods["hash"] for methods in curves([tmp_path]).values())
    found = expect(points, 4)
    assert found.note == "2 seeds: training noise not counted"
    assert (found.low, found.high) == pytest.approx((0.006, 0.014))


def test_several_models_are_joined_by_the_weakest() -> None:
    one = Expected(0.01, 0.0, 0.02, "measured", "a")
    two = Expected(0.03, 0.02, 0.05, "interpolated", "b")
    joined = combine({("d", "fm"): one, ("d", "lr"): two})
    assert joined == Expected(0.02, 0.0, 0.05, "interpolated", "d/fm: a; d/lr: b")
    guess = Expected(0.05, None, None, "extrapolated", "c")
    joined = combine({("d", "fm"): one, ("d", "lr"): guess})
    assert (joined.low, joined.basis) == (None, "extrapolated")


def test_sizes_by_hand_are_the_same_method() -> None:
    assert without_size("unified(lookups=2, rows=70)+int8") == "unified(lookups=2)+int8"
    assert without_size("hash(power=1.0, rows=3)+magnitude(kept=9)") == "hash(power=1.0)+magnitude"
    assert without_size("lsq(bits=4)") == "lsq(bits=4)"


def test_plans_are_ranked_by_what_was_measured(tmp_path: Path) -> None:
    records = sweep(lambda ratio: 0.01 * ratio, [2, 8])
    records += [record("unified", 4.0, seed, 0.9 - 0.5) for seed in range(3)]
    records += [record("qr", 50.0, seed, 0.79) for seed in range(3)]
    write(tmp_path, records)
    schema = fe.Schema([fe.Feature("user", 5000), fe.Feature("item", 900)])
    wanted = ["robe", "qr", "unified", "hash", "full"]
    frame = rank(fe.plan(schema, dim=8, ratio=4, specs=wanted), [tmp_path])
    assert list(frame.method) == ["hash", "unified", "qr", "robe", "full"]
    assert list(frame.basis) == [
        "interpolated",
        "measured",
        "extrapolated",
        "no evidence",
        "no evidence",
    ]
    assert frame.auc_loss[0] == pytest.approx(0.05, abs=1e-3)
    assert pd.isna(frame.auc_loss[3])
    whole = rank(fe.plan(schema, dim=8, specs=["full"]), [tmp_path])
    assert (whole.auc_loss[0], whole.basis[0]) == (0.0, "measured")


def test_no_evidence_at_all_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, sweep(lambda ratio: 0.01, [4], model="lr"))
    with pytest.raises(RunError, match=r"any data set, dlrm by; .*d, lr"):
        curves([tmp_path], model="dlrm")
    assert list(curves([tmp_path], data="d", model="lr")) == [("d", "lr")]
