"""The speed benchmarks run through at tiny sizes; what they measure is in their records."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import featemb as fe
from featemb.benchmarks.speed import growth, growth_points, lookups, pages, peers, step_profile
from featemb.benchmarks.speed.peer_models import CONTENDERS, Sizes, batches
from featemb.benchmarks.speed.turns import Taken, take

SIZES = Sizes(rows=400, features=4, dim=4, hidden=(8,), batch=64)


@pytest.mark.parametrize("peer", [name for name in CONTENDERS if name != "featemb"])
def test_a_pair_takes_turns(peer: str) -> None:
    found = peers.one(SIZES, peer, turns=2, warmup=1)
    assert found["peer"] == peer
    assert all(rate > 0 for rate in found["samples_per_second"].values())
    assert set(found["ratios"]) == {"median", "best", "processor"}


def test_every_contender_learns_the_same_data() -> None:
    """A step of each moves its loss down: all of them train the model that is timed."""
    ids, _ = batches(SIZES)()
    label = (ids[:, 0] % 2).float()
    for name, make in CONTENDERS.items():
        torch.manual_seed(0)
        step = make(SIZES)
        parameters = [
            one
            for cell in step.__closure__ or ()
            if isinstance(cell.cell_contents, torch.nn.Module)
            for one in cell.cell_contents.parameters()
        ]
        before = [one.detach().clone() for one in parameters]
        step(ids, label)
        moved = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
        assert sum(moved) >= len(moved) - 1, name  # a bias may start with a gradient of zero
        assert moved, name


def test_shares_of_a_step_sum_to_one() -> None:
    found = step_profile.shares(SIZES, turns=2, warmup=1)["shares"]
    assert set(found) == set(step_profile.PARTS)
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert all(0 <= share < 1 for share in found.values())
    assert min(found[part] for part in ("rows", "optimizer", "net")) > 0


def test_turns_count_after_the_warmup() -> None:
    seconds = iter([9.0, 1.0, 3.0, 2.0])
    found = take({"a": lambda: Taken(next(seconds), 0.5)}, turns=3, warmup=1)
    assert found == {"median": {"a": 2000.0}, "best": {"a": 1000.0}, "processor": {"a": 500.0}}


def options(**changed: object) -> argparse.Namespace:
    made = {
        **{"features": 3, "cardinality": 50, "dim": 4, "batch": 40, "batches": 2, "ids": "zipf"},
        **{"ratio": 2, "turns": 2, "warmup": 0, "limit": 9.0, "compiled": False},
    }
    return argparse.Namespace(**made, **changed)


def test_lookups_of_methods() -> None:
    bench = lookups.Bench(options())
    assert bench.repeats > 1
    for spec in ("unified", "magnitude", "dhe(hashes=8)", "pep"):
        found = bench.measure(spec)
        assert found["times_smaller"] > 0
        for form in ("step", "forward", "frozen"):
            assert found[form]["ratios"]["median"] > 0


def test_lookups_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lookups.json"
    sizes = ["--cardinality", "60", "--features", "2", "--dim", "4", "--batch", "20"]
    quick = ["--ratio", "2", "--turns", "1", "--warmup", "0", "--no-compiled", "--out", str(out)]

    def run(*methods: str) -> dict[str, object]:
        monkeypatch.setattr("sys.argv", ["lookups", "--methods", *methods, *sizes, *quick])
        lookups.main()
        found: dict[str, object] = json.loads(out.read_text())["methods"]
        return found

    first = run("hash")
    capsys.readouterr()
    second = run("hash", "full")
    assert second["hash"] == first["hash"]
    assert list(second) == ["hash", "full"]
    assert not capsys.readouterr().out.startswith("hash")


def test_exponents_are_those_of_powers() -> None:
    values = [10, 100, 1000, 10_000]
    found = growth.fit(values, [3 * v**0.5 for v in values])
    assert found["exponent"] == pytest.approx(0.5, abs=1e-3)
    assert found["interval"] == [0.5, 0.5]
    noisy = growth.fit(values, [3 * v**0.5 * f for v, f in zip(values, (1, 2, 1, 2), strict=True)])
    assert noisy["interval"][0] < 0.5 < noisy["interval"][1]


@pytest.mark.parametrize("changed", [{}, {"lookups": 2}, {"bag": 3}, {"optimizer": "row_sgd"}])
def test_a_point_of_growth(changed: dict[str, object]) -> None:
    point = growth_points.read(
        growth_points.StepPoint,
        {"rows": 400, "features": 4, "dim": 4, "batch": 16, "turns": 2, **changed},
    )
    found = growth_points.step(point)
    assert found["milliseconds"]["median"] > 0
    state = 0 if point.optimizer == "row_sgd" else 2
    if not point.lookups:
        assert found["parts"]["rows"] == 400 * 4 * 4
        assert found["parts"].get("optimizer state", 0) >= state * 400 * 4 * 4


def test_growth_of_encoding() -> None:
    point = growth_points.EncodePoint(rows=500, features=2, distinct=20)
    assert growth_points.encode(point)["milliseconds"]["median"] > 0


def test_the_largest_table_is_told_beside_its_count() -> None:
    last = {"rows": 10, "parts": {"rows": 100}, "resident_bytes": 105, "peak_bytes": 110}
    found = growth.largest({"points": [last]})
    assert (found["resident_ratio"], found["peak_ratio"]) == (1.05, 1.1)


def test_unknown_tables_are_refused(tmp_path: Path) -> None:
    page = "<!-- speed growth -->\nold\n<!-- end -->"
    assert "Not measured yet." in pages.fill(page, tmp_path)
    with pytest.raises(fe.ConfigError, match="Allowed: peers"):
        pages.fill(page.replace("growth", "grwth"), tmp_path)


def test_tables_are_filled_from_records(tmp_path: Path) -> None:
    axis = growth.fit([1, 10, 100], np.array([2.0, 4.0, 8.0]).tolist())
    point = {"milliseconds": {"median": 2.0}}
    found = {
        **{"of": "rows", "points": [{"rows": 1, **point}, {"rows": 100, **point}]},
        **{"time": axis, "training_bytes": axis},
    }
    (tmp_path / "growth.json").write_text(json.dumps({"axes": {"rows": found}}))
    page = pages.fill("<!-- speed growth -->\nold\n<!-- end -->", tmp_path)
    assert "| rows | 1 to 100 | 2.0 to 2.0 | 0.30 (0.30 to 0.30) | 0.30 (0.30 to 0.30) |" in page
    assert pages.fill(page, tmp_path) == page
