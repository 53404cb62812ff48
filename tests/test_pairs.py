"""Groups of runs, their references, and the comparisons that outlive the predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import fail, make, without_predictions

from featemb.benchmarks import stats, stored_pairs
from featemb.benchmarks.groups import group_runs, reference_of
from featemb.benchmarks.pairs import Pairing, Predictions, pairings, read_tested
from featemb.benchmarks.records import read_all
from featemb.benchmarks.report import aggregate
from featemb.cli import main
from featemb.errors import RunError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of the full table, of hash and of unified at two sizes; one failure."""
    folder = tmp_path / "runs"
    for seed in range(3):
        make(folder, seed=seed)
        make(folder, 1.0, 100, method="hash", ratio=10.0, seed=seed)
        make(folder, 0.5, 100, method="unified", ratio=10.0, seed=seed)
        make(folder, 2.0, 10, method="unified", ratio=100.0, seed=seed)
    fail(folder, "too small", method="hash", ratio=100.0)
    return folder


def found_pairs(folder: Path) -> list[Pairing]:
    return pairings(group_runs(read_all(folder).records.values()))


def test_everything_is_held_against_full_and_against_hash_of_its_size(runs: Path) -> None:
    pairs = {(pair.method, pair.asked, pair.reference): pair for pair in found_pairs(runs)}
    assert set(pairs) == {
        ("hash", "10x", "full"),
        ("unified", "10x", "full"),
        ("unified", "10x", "hash"),
        ("unified", "100x", "full"),
    }
    pair = pairs["unified", "10x", "hash"]
    assert pair.seeds == (0, 1, 2)
    for run, other in zip(pair.runs, pair.reference_runs, strict=True):
        assert (runs / run / "run.json").is_file()
        assert ("-s0-" in run) == ("-s0-" in other)


def test_seeds_that_one_side_lacks_are_left_out(tmp_path: Path) -> None:
    for seed in range(2):
        make(tmp_path, seed=seed)
    for seed in range(1, 4):
        make(tmp_path, 1.0, 100, method="hash", ratio=10.0, seed=seed)
    (pair,) = found_pairs(tmp_path)
    assert pair.seeds == (1,)
    row = next(
        row for row in aggregate(tmp_path, read_all(tmp_path).records.values()) if row.ratio > 1
    )
    assert row.seeds == 3
    assert row.to_full is not None
    assert row.to_full.compared.auc is not None
    assert row.to_full.compared.auc.seeds == 1


def test_runs_of_other_settings_are_rows_of_their_own(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        make(tmp_path, lr=lr)
        make(tmp_path, 1.0, 100, method="hash", ratio=10.0, lr=lr)
    groups = group_runs(read_all(tmp_path).records.values())
    for group in groups:
        if group.method == "hash":
            full = reference_of(group, "full", groups)
            assert full is not None
            assert full.config["lr"] == group.config["lr"], "the reference most alike is taken"
    rows = aggregate(tmp_path, read_all(tmp_path).records.values())
    assert {row.label for row in rows if row.ratio > 1} == {"hash [lr=0.1]", "hash [lr=0.2]"}


def test_another_width_or_model_is_no_reference(tmp_path: Path) -> None:
    make(tmp_path, dim=4)
    make(tmp_path, model="deepfm")
    make(tmp_path, 1.0, 100, method="hash", ratio=10.0)
    assert found_pairs(tmp_path) == []
    with pytest.raises(RunError, match="reference"):
        stored_pairs.store(tmp_path)


def test_estimates_are_those_of_the_predictions(runs: Path) -> None:
    pair = next(pair for pair in found_pairs(runs) if pair.reference == "hash")
    compared = Predictions(runs).compare(pair)
    assert compared.auc is not None
    assert compared.logloss is not None
    assert compared.gauc is None
    each = [
        stats.delong(*stats.predictions(runs / a), stats.predictions(runs / b)[1]).value
        for a, b in zip(pair.runs, pair.reference_runs, strict=True)
    ]
    assert compared.auc.value == pytest.approx(np.mean(each))
    assert (compared.auc.seeds, compared.auc.rows) == (3, 800)
    assert compared.auc.value > 0 > compared.logloss.value


def test_users_give_gauc(tmp_path: Path) -> None:
    make(tmp_path, users=40)
    make(tmp_path, 1.0, 100, method="hash", ratio=10.0, users=40)
    (pair,) = found_pairs(tmp_path)
    gauc = Predictions(tmp_path).compare(pair).gauc
    records = read_all(tmp_path).records
    values = [
        records[name]["metrics"]["test"]["gauc"]["value"]
        for name in (*pair.runs, *pair.reference_runs)
    ]
    assert gauc is not None
    assert gauc.value == pytest.approx(values[0] - values[1])


def test_other_test_rows_are_no_pair(tmp_path: Path) -> None:
    full = make(tmp_path)
    make(tmp_path, 1.0, 100, method="hash", ratio=10.0)
    other = make(tmp_path / "other", test_seed=1)
    shutil.copy(tmp_path / "other" / other / "predictions.parquet", tmp_path / full)
    (pair,) = found_pairs(tmp_path)
    compared = Predictions(tmp_path).compare(pair)
    assert compared.auc is None
    assert compared.reason == "not tested on the same rows"


def test_the_file_outlives_the_predictions(runs: Path) -> None:
    main_returns_none(["compare", "--all", str(runs)])
    before = aggregate(runs, read_all(runs).records.values())
    without_predictions(runs)
    after = aggregate(runs, read_all(runs).records.values())
    assert before == after
    assert any(row.to_hash is not None and row.to_hash.p is not None for row in after)
    document = json.loads((runs / "paired.json").read_text())
    entry = next(one for one in document["comparisons"] if one["reference"] == "hash")
    assert {"data", "model", "method", "asked", "seeds", "runs", "reference_runs"} < set(entry)
    assert {"value", "low", "high", "p", "error", "freedom", "seeds", "rows"} == set(entry["auc"])


def test_without_predictions_and_file_nothing_is_tested(runs: Path) -> None:
    without_predictions(runs)
    rows = aggregate(runs, read_all(runs).records.values())
    assert {row.verdict for row in rows} == {"reference", "not tested"}
    with pytest.raises(RunError, match="has no predictions"):
        stored_pairs.store(runs)


def test_predictions_win_over_the_file(runs: Path) -> None:
    stored_pairs.store(runs)
    path = runs / "paired.json"
    path.write_text(path.read_text().replace('"runs": [', '"runs": ["other", '))
    assert any(row.p is not None for row in aggregate(runs, read_all(runs).records.values()))


def test_writing_again_keeps_what_has_no_predictions(runs: Path) -> None:
    stored_pairs.store(runs)
    first = (runs / "paired.json").read_text()
    without_predictions(runs)
    stored_pairs.store(runs)
    assert (runs / "paired.json").read_text() == first
    assert not list(runs.glob(".paired*")), "no temporary file is left"


def stale(folder: Path, words: str) -> None:
    with pytest.raises(RunError, match=words):
        aggregate(folder, read_all(folder).records.values())


def test_a_seed_more_makes_the_file_stale(runs: Path) -> None:
    stored_pairs.store(runs)
    make(runs, 0.5, 100, method="unified", ratio=10.0, seed=3)
    make(runs, seed=3)
    without_predictions(runs)
    stale(runs, "stale: it does not compare unified at 10x with full")


def test_a_run_less_makes_the_file_stale(runs: Path) -> None:
    stored_pairs.store(runs)
    without_predictions(runs)
    for folder in runs.glob("*unified-x100-*"):
        shutil.rmtree(folder)
    stale(runs, "unified at 100x .* is not in the records")


def test_another_result_makes_the_file_stale(runs: Path) -> None:
    stored_pairs.store(runs)
    without_predictions(runs)
    path = next(runs.glob("*unified-x10-s1*/run.json"))
    record = json.loads(path.read_text())
    record["metrics"]["test"]["auc"]["value"] += 0.001
    path.write_text(json.dumps(record))
    stale(runs, "stale: auc of unified at 10x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2, "comparisons": []}', '{"format": 1, "comparisons": [{}]}'],
)
def test_a_broken_file_is_told(runs: Path, text: str) -> None:
    without_predictions(runs)
    (runs / "paired.json").write_text(text)
    stale(runs, "paired.json")


def test_broken_predictions_are_told(runs: Path) -> None:
    path = next(runs.glob("*/predictions.parquet"))
    path.write_bytes(b"no parquet")
    with pytest.raises(RunError, match="not readable"):
        read_tested(path.parent)


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["compare", "--all", str(tmp_path / "nowhere")])
    assert left.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


def main_returns_none(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
