"""Planted truth: the harness must find the winners that the data have, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featemb.benchmarks.grid import Grid
from featemb.benchmarks.records import read_all
from featemb.benchmarks.report.aggregate import Against, aggregate
from featemb.benchmarks.sweep import sweep
from featemb.datasets import Dataset, load
from featemb.datasets.planted import _FEATURES
from featemb.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
SETS = ("planted_frequent", "planted_random", "planted_equal")
METHODS = ("hash", "frequency", "magnitude(unit=rows)")


def rates(data: Dataset, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """Lookups and share of clicks of each id of a feature, over all rows."""
    ids = np.concatenate([split.ids[:, feature] for split in data.splits.values()])
    label = np.concatenate([split.label for split in data.splits.values()])
    count = np.bincount(ids, minlength=data.schema.cardinalities[feature] or 0)
    clicks = np.bincount(ids, label, minlength=len(count))
    return count, clicks / np.maximum(count, 1)


def carriers(data: Dataset, feature: int) -> np.ndarray:
    """Ids whose clicks differ from most ids' by more than chance would (|z| > 5)."""
    count, share = rates(data, feature)
    usual = np.median(share[count > 100])
    error = np.sqrt(usual * (1 - usual) / np.maximum(count, 1))
    return np.flatnonzero((np.abs(share - usual) > 5 * error) & (count > 100))


def test_frequent_ids_carry_the_signal() -> None:
    data = load("planted_frequent", rows=50_000)
    found = [carriers(data, feature) for feature in range(_FEATURES)]
    assert max(ids.max() for ids in found if len(ids)) <= 3, "1% of 299 ids"
    assert sum(len(ids) for ids in found) >= 15, "of 30; some weights are near zero"


def test_a_random_part_of_equal_ids_carries_the_signal() -> None:
    data = load("planted_random", rows=50_000)
    found = [carriers(data, feature) for feature in range(_FEATURES)]
    ids = np.concatenate(found)
    assert 10 <= len(ids) <= 60, "30 expected, and each with 1% probability"
    assert ids.mean() > 50, "not the first ones"
    count, _ = rates(data, 0)
    assert count[0] == 0
    assert count[1:].min() > 0.5 * count.mean(), "equally frequent"


def test_every_id_carries_as_much() -> None:
    data = load("planted_equal", rows=400_000, ids=30)
    shares = [np.sort(rates(data, feature)[1][1:]) for feature in range(_FEATURES)]
    for share in shares:  # two levels, one of each sign
        gap = int(np.argmax(np.diff(share)))
        low, high = share[: gap + 1], share[gap + 1 :]
        assert np.ptp(low) + np.ptp(high) < share[gap + 1] - share[gap] + 0.04
        assert 0.05 < high.mean() - low.mean() < 0.2
    assert 0.6 < data.meta["bayes_auc"] < 0.8


@pytest.mark.parametrize("name", SETS)
def test_same_seed_same_data(name: str) -> None:
    one, two, other = (load(name, rows=500, seed=seed) for seed in (0, 0, 1))
    assert one.name == name
    assert one.fingerprint == two.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "options", [{"signal_on": "rare"}, {"weights": "equal"}, {"signal_on": None}]
)
def test_wrong_words_are_named(options: dict[str, str]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(DataError, match=f"{name} must be .* got {value!r}"):
        load("synthetic", rows=100, **options)


def against_hash(folder: Path) -> dict[tuple[str, str], Against]:
    """The report's comparison of each data set and method with hash of the same size."""
    rows = aggregate(folder, read_all(folder).records.values())
    return {
        (row.data, row.method): row.to_hash
        for row in rows
        if row.to_hash is not None and not row.is_full
    }


@pytest.mark.slow
def test_winners_are_those_that_were_planted(tmp_path: Path) -> None:
    grid = Grid.from_toml(ROOT / "benchmarks" / "configs" / "planted.toml")
    assert grid.data == SETS
    assert set(METHODS) <= set(grid.methods)
    small = replace(
        grid, methods=METHODS, seeds=(0, 1, 2), data_options={n: {"rows": 30_000} for n in SETS}
    )
    records = sweep(small.runs(), tmp_path)
    assert all(record["status"] == "ok" for record in records)
    found = against_hash(tmp_path)
    assert set(found) == {(data, method) for data in SETS for method in METHODS[1:]}
    better = {key for key, against in found.items() if against.verdict == "better"}
    assert better == {
        ("planted_frequent", "frequency"),
        ("planted_frequent", "magnitude(unit=rows)"),
        ("planted_random", "magnitude(unit=rows)"),
    }
    for (data, _), against in found.items():
        assert against.compared.auc is not None
        assert data != SETS[0] or against.compared.auc.value > 0.05
