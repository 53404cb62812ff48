"""``featemb compare``: selectors, pairs, verdicts and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_folders import fail, make, without_predictions

from featemb.benchmarks import stats
from featemb.benchmarks.groups import group_runs
from featemb.benchmarks.pairs import Predictions, pairings
from featemb.benchmarks.records import read_all
from featemb.benchmarks.selecting import Filters, Selector, read_settings
from featemb.cli import main
from featemb.errors import ConfigError, RunError

METHOD = "unified(lookups=2)"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        make(folder, seed=seed, users=40)
        make(folder, 1.0, 100, method="hash", ratio=10.0, seed=seed, users=40)
        make(folder, 0.0, 90, method=METHOD, ratio=10.0, seed=seed, users=40)
        make(folder, 2.0, 10, method=METHOD, budget=20, seed=seed, users=40)
        make(folder, 1.5, 300, method="hash", ratio=10 / 3, seed=seed, users=40)
    fail(folder, "too small", method="hash", ratio=1000.0)
    return folder


@pytest.fixture
def runs(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "runs"))


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["compare", *arguments])
    told = capsys.readouterr()
    assert left.value.code == 0, told.err
    return told.out


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(say(capsys, *arguments, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["compare", *arguments])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("text", "method", "size"),
    [
        ("hash@10x", "hash", "10x"),
        ("hash@3.333x", "hash", "3.33333x"),
        ("unified( lookups = 2 )@10x", METHOD, "10x"),
        (f"{METHOD}@20", METHOD, "2e-05 MB"),
        ("full", "full", "-"),
        ("full@-", "full", "-"),
    ],
)
def test_selectors(kept: Path, text: str, method: str, size: str) -> None:
    found = Selector(kept).select(text)
    assert list(found.runs) == [0, 1, 2]
    (group,) = group_runs(found.runs.values())
    assert (group.method, group.asked) == (method, size)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hash@7x", "Allowed: 10x, 3.33333x"),
        ("hash", "sizes 10x, 3.33333x; write METHOD@SIZE"),
        ("hash@1000x", "no finished runs at '1000x'"),
        ("hash@manyx", "cannot read the ratio"),
        ("hash@many", "cannot read the budget"),
        ("hsh@10x", "did you mean 'hash'"),
        ("qr@10x", "holds no finished runs of 'qr'"),
        ("@10x", "method"),
    ],
)
def test_selectors_that_mean_nothing(kept: Path, text: str, words: str) -> None:
    with pytest.raises((RunError, ConfigError), match=words.replace("(", r"\(")):
        Selector(kept).select(text)


def test_filters(kept: Path) -> None:
    assert list(Selector(kept, Filters(seeds=(1, 2))).select("hash@10x").runs) == [1, 2]
    assert Selector(kept, Filters(settings={"dim": 8})).select("hash@10x").runs
    for filters in (Filters(data="other"), Filters(model="other"), Filters(settings={"dim": 9})):
        with pytest.raises(RunError, match="with these filters"):
            Selector(kept, filters).select("hash@10x")
    assert read_settings(["lr=0.5", "optimizer = row_adam"]) == {
        "lr": 0.5,
        "optimizer": " row_adam",
    }
    for text in ("lr", "=3"):
        with pytest.raises(ConfigError, match="NAME=VALUE"):
            read_settings([text])


def test_two_models_are_not_mixed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(runs, 1.0, 100, method="hash", ratio=10.0, model="deepfm", model_config={"a": 1})
    told = refused(capsys, "hash@10x", "full", "--runs", str(runs))
    assert 'model "dcnv2" or "deepfm"; choose by --data, --model' in told
    assert asked(capsys, "hash@10x", "full", "--runs", str(runs), "--model", "dcnv2")["pairs"]


def test_seeds_are_taken_together(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = asked(capsys, f"{METHOD}@10x", "hash@10x", "--runs", str(kept))
    (pair,) = told["pairs"]
    groups = group_runs(read_all(kept).records.values())
    wanted = next(
        one
        for one in pairings(groups)
        if (one.method, one.asked, one.reference) == (METHOD, "10x", "hash")
    )
    compared = Predictions(kept).compare(wanted)
    for name in ("auc", "logloss", "gauc"):
        estimate = getattr(compared, name)
        assert estimate.to_dict().items() <= pair[name].items()
        assert pair[name]["p_holm"] == pair[name]["p"]
    assert pair["seeds"] == [[0, 0], [1, 1], [2, 2]]
    assert [run["serving"] for run in told["runs"]] == [90, 100]
    auc = told["runs"][1]["metrics"]["auc"]
    each = [
        read_all(kept).records[name]["metrics"]["test"]["auc"] for name in wanted.reference_runs
    ]
    assert auc["value"] == pytest.approx(sum(one["value"] for one in each) / 3)
    assert auc["low"] < auc["value"] < auc["high"]


def test_two_folders_are_delongs_test(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (str(next(kept.glob(f"*-{size}-s0-*"))) for size in ("hash-x10", "full-full"))
    (pair,) = asked(capsys, one, two)["pairs"]
    reference = stats.delong(*stats.predictions(one), stats.predictions(two)[1])
    assert pair["auc"]["value"] == pytest.approx(reference.value)
    assert pair["auc"]["p"] == pytest.approx(reference.p)
    text = say(capsys, one, two)
    assert "One seed: training noise not counted" in text
    assert "hash 10x s0 is lower by" in text


def test_other_seeds_are_told(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [next(kept.glob(f"*hash-x10-s{n}-*")).name for n in (0, 1)]
    assert "different seeds" in say(capsys, *names, "--runs", str(kept))


def test_words(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = say(capsys, f"{METHOD}@10x", "hash@10x", "--runs", str(kept))
    assert "real at the 0.1% level (p" in text
    assert f"{METHOD} 10x is higher by" in text
    assert "LogLoss: the difference is real at the 1% level" in text
    assert "training noise" not in text
    text = say(capsys, f"{METHOD}@10x", "full", "--runs", str(kept))
    assert "AUC: not shown to differ at the 5% level" in text
    assert "would be shown by 80% of such comparisons" in text
    assert "Two seeds" in say(
        capsys, "full", "hash@10x", "--runs", str(kept), "--seed", "0", "--seed", "1"
    )


def test_all_pairs_with_holm(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = (f"{METHOD}@10x", "hash@10x", "full")
    pairs = asked(capsys, *what, "--runs", str(kept))["pairs"]
    assert [(one["first"], one["second"]) for one in pairs] == [
        (f"{METHOD} 10x", "hash 10x"),
        (f"{METHOD} 10x", "full"),
        ("hash 10x", "full"),
    ]
    for name in ("auc", "logloss", "gauc"):
        raw = [one[name]["p"] for one in pairs]
        assert [one[name]["p_holm"] for one in pairs] == pytest.approx(stats.holm(raw))
    assert "by Holm's rule over 3 pairs" in say(capsys, *what, "--runs", str(kept))


def test_stored_comparisons_stand_in(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ("hash@10x", f"{METHOD}@10x", "--runs", str(runs))
    before = asked(capsys, *both)
    say(capsys, "--all", str(runs))
    without_predictions(runs)
    assert asked(capsys, *both) == before
    assert "has no predictions" in refused(capsys, "hash@10x", "hash@3.333x", "--runs", str(runs))
    (runs / "paired.json").unlink()
    assert "has no predictions" in refused(capsys, *both)


def test_refusals(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(tmp_path / "other" / make(tmp_path / "other", test_seed=1))
    mine = str(next(runs.glob("*full-full-s0-*")))
    failed = str(next(runs.glob("*hash-x1000-*")))
    assert "not tested on the same rows" in refused(capsys, mine, other)
    assert "failed: BudgetError" in refused(capsys, mine, failed)
    assert "two kinds of runs" in refused(capsys, mine)
    assert "two kinds of runs" in refused(capsys)
    assert "name a folder of runs by --runs" in refused(capsys, "hash@10x", "full")
    assert "no folder" in refused(capsys, "hash@10x", "full", "--runs", str(tmp_path / "none"))
    assert "name no runs beside it" in refused(capsys, mine, "--all", str(runs))
    for name in runs.glob("*hash-x10-s[12]*"):
        shutil.rmtree(name)
    for name in runs.glob("*full-full-s0*"):
        shutil.rmtree(name)
    assert "no seed in common" in refused(capsys, "hash@10x", "full", "--runs", str(runs))
