"""Searches: the space of a run, trials as runs, going on after a kill, the command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featemb.benchmarks import paste
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.grid import Grid
from featemb.benchmarks.run import run_id
from featemb.benchmarks.search import Found, search
from featemb.benchmarks.space import Space
from featemb.benchmarks.study import Plan
from featemb.cli import main
from featemb.cli.tune import parse_seconds
from featemb.errors import ConfigError

BASE: dict[str, Any] = {
    "data": "synthetic",
    "data_options": {"rows": 1500, "cardinalities": [60, 30], "signal": 2.0},
    "model_config": {"hidden": [8], "cross_layers": 1},
    **{"method": "hash", "ratio": 4, "dim": 4, "epochs": 1, "batch_size": 64, "threads": 1},
}


def run(**settings: Any) -> RunConfig:
    return RunConfig(**{**BASE, **settings})


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([str(one) for one in arguments])
    return int(raised.value.code or 0)


def names(space: Space) -> list[str]:
    return [knob.name for knob in space.knobs]


def done(folder: Path) -> dict[str, float]:
    """Validation AUC of every run of a folder."""
    paths = folder.glob("*/run.json")
    found = [json.loads(path.read_text()) for path in paths]
    return {
        one["run_id"]: one["metrics"]["valid"]["auc"]["value"]
        for one in found
        if one["status"] == "ok"
    }


def test_space_is_what_the_method_declares() -> None:
    assert names(Space.of(run())) == ["hash.power", "hash.init"]
    assert names(Space.of(run(), ["power"])) == ["hash.power"]
    assert names(Space.of(run(), ["hash.init"], ["lr", "dropout"])) == [
        "hash.init",
        "lr",
        "dropout",
    ]
    fixed = run(method="qr(combine=add, init=0.1)")
    assert names(Space.of(fixed)) == ["qr.partitions", "qr.multiplexed", "qr.power"]
    assert names(Space.of(fixed, ["combine"])) == ["qr.combine"]
    both = run(method="qr+magnitude+int8")
    assert names(Space.of(both, ["init", "unit"])) == [
        "qr.init",
        "magnitude.init",
        "magnitude.unit",
    ]


def test_values_become_a_run_of_the_same_size() -> None:
    space = Space.of(run(method="qr+magnitude+int8"), ["init", "partitions"], ["lr", "dropout"])
    values = {"qr.init": 0.0123456, "magnitude.init": 0.01, "qr.partitions": 3}
    config = space.config({**values, "lr": 0.00123456, "dropout": 0.25})
    assert config.method == "qr(partitions=3, init=0.01235)+magnitude+int8"
    assert (config.lr, config.model_config["dropout"], config.ratio) == (0.001235, 0.25, 4.0)
    assert space.config(space.start()) == space.base


@pytest.mark.parametrize(
    ("settings", "knobs", "train", "message"),
    [
        ({"ratio": None}, [], [], "keeps the size fixed"),
        ({}, ["powr"], [], "no setting 'powr' to search; did you mean"),
        ({}, ["rows"], [], "no setting 'rows' to search"),
        ({}, [], ["lrr"], "did you mean 'lr'"),
        ({}, [], ["seed"], "no setting of training 'seed'"),
        ({"model": "fm", "model_config": {}}, [], ["dropout"], "fm has no dropout"),
        ({"method": "full(init=0.1)", "ratio": None}, [], [], "no setting left to search"),
    ],
)
def test_a_wrong_space_is_named(
    settings: dict[str, Any], knobs: list[str], train: list[str], message: str
) -> None:
    base = run(**settings)
    with pytest.raises(ConfigError, match=message):
        Space.of(base, knobs, train)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpee"}, "unknown sampler 'tpee'"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"prune": True, "jobs": 2}, "jobs=2 cannot"),
    ],
)
def test_a_wrong_plan_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(**settings)


def test_grid_has_every_combination_once() -> None:
    space = Space.of(run(method="qr"), ["partitions", "combine"], ["lr"])
    points = list(space.grid(seed=3))
    assert points[0] == space.start() == {"qr.partitions": 2, "qr.combine": "multiply", "lr": 1e-3}
    texts = {json.dumps(one) for one in points}
    assert len(texts) == len(points) == 3 * 3 * 3 + 1, "0.001 is no point of the learning rates"
    assert {one["lr"] for one in points} == {1e-4, 1e-3, 1.414e-3, 2e-2}


def test_best_validation_auc_is_found_and_nothing_runs_twice(tmp_path: Path) -> None:
    space = Space.of(run(), train_knobs=["lr"])
    found = search(space, Plan(trials=6), tmp_path)
    assert len(found.trials) == 6
    auc = done(tmp_path)
    assert {trial.run: trial.auc for trial in found.trials} == auc
    assert found.record is not None
    assert found.best is not None
    assert found.record["run_id"] == run_id(found.best) == max(auc, key=lambda name: auc[name])
    assert found.trials[0].run == run_id(space.base), "the settings without a search come first"
    assert not found.importance, "six trials tell little"
    events: list[dict[str, Any]] = []
    more = search(space, Plan(trials=11), tmp_path, events.append)
    assert more.trials[:6] == found.trials
    assert sum(event["event"] == "start" for event in events) == 5
    ends = [event["message"] for event in events if event["event"] == "end"]
    assert all(message.startswith("valid AUC") for message in ends), "never the test split"
    assert sum(more.importance.values()) == pytest.approx(1.0)
    assert set(more.importance) == set(names(space))


def test_a_killed_search_ends_as_one_that_was_not(tmp_path: Path) -> None:
    space, plan = Space.of(run(), train_knobs=["lr"]), Plan(trials=5)
    whole = search(space, plan, tmp_path / "whole")
    started = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            started.append(event["run_id"])
            if len(started) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(space, plan, tmp_path / "killed", kill)
    assert len(done(tmp_path / "killed")) == 2
    again = search(space, plan, tmp_path / "killed")
    assert [(one.values, one.auc) for one in again.trials] == [
        (one.values, one.auc) for one in whole.trials
    ]
    assert again.best == whole.best


def test_what_makes_no_run_or_no_size_is_told(tmp_path: Path) -> None:
    space = Space.of(run(method="unified"), ["lookups"])
    found = search(space, Plan(trials=9, sampler="grid"), tmp_path)
    assert found.trials[0].values["unified.lookups"] == 1
    reasons = {trial.values["unified.lookups"]: trial.reason for trial in found.trials}
    assert set(reasons) == {1, 2, 4, 8}, "a grid ends"
    assert "lookups must divide dim" in reasons.pop(8)
    assert set(reasons.values()) == {""}
    small = search(Space.of(run(ratio=1e5), ["init"]), Plan(trials=2), tmp_path)
    assert small.best is small.record is None
    assert all("BudgetError" in trial.reason for trial in small.trials)


def test_poor_runs_are_stopped_early(tmp_path: Path) -> None:
    base = run(epochs=4, optimizer="row_sgd", data_options={**BASE["data_options"], "rows": 3000})
    space = Space.of(base, ["init"], ["lr", "batch_size"])
    found = search(space, Plan(trials=12, prune=True, sampler="random", checkpoint=True), tmp_path)
    stopped = [trial for trial in found.trials if trial.reason.startswith("stopped early")]
    assert 1 <= len(stopped) <= 7, "five run to their end"
    assert all(trial.auc is None for trial in stopped)
    assert len(done(tmp_path)) == 12 - len(stopped), "what was stopped has no record"
    assert not any(trial.run in done(tmp_path) for trial in stopped)
    assert not list((tmp_path / ".checkpoints").glob("*.pt"))


@pytest.mark.slow
def test_processes_try_what_one_would(tmp_path: Path) -> None:
    space = Space.of(run(), train_knobs=["lr"])

    def values(found: Found) -> list[Any]:
        return [(one.values, one.auc) for one in found.trials]

    plan = {"trials": 4, "sampler": "random"}
    one = search(space, Plan(**plan), tmp_path / "one")
    two = search(space, Plan(**plan, jobs=2), tmp_path / "two")
    assert values(one) == values(two)


def test_no_trial_begins_after_the_time(tmp_path: Path) -> None:
    found = search(Space.of(run()), Plan(trials=5, timeout=0.0), tmp_path)
    assert found.trials == ()
    assert found.best is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), (" 1.5 h", 5400), (".5m", 30)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1s", "1d", "1 2", "nan"])
def test_wrong_times(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the time"):
        parse_seconds(text)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"budget": "2kB", "ratio": None, "lr": 1e-05, "optimizer": "dense_adam"},
        {"method": 'qr(per_feature={"a b": 2})', "anneal": 0.5, "seed": 3},
        {"model": "deepfm", "model_config": {"batch_norm": True, "hidden": [7, 8], "dropout": 0.2}},
    ],
)
def test_a_run_as_a_sweep_is_the_same_run(settings: dict[str, Any], tmp_path: Path) -> None:
    config = run(**settings)
    path = tmp_path / "one.toml"
    path.write_text(paste.toml(config))
    assert Grid.from_toml(path).runs()[-1] == config
    with pytest.raises(ConfigError, match=r"no option for .*rows"):
        paste.command(config)  # --rows is another thing than the rows of the data set


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    fixed = ["--data", "nycflights13_demo", "--rows", 2000, "--epochs", 1, "--dim", 8]
    fixed += ["--set", "hidden=[8]", "--threads", 1, "--method", "multi_hash", "--ratio", 10]
    fixed += ["--knob", "probes", "--knob", "combine", "--train-knob", "lr", "--out", out]
    assert cli("tune", *fixed, "--trials", 4) == 0
    told = capsys.readouterr().out
    assert "searching multi_hash.probes: 1 to 4" in told
    assert "searching lr: 0.0001 to 0.02, log" in told
    assert told.count("test AUC") == 1, "of the best alone"
    (command,) = [line for line in told.splitlines() if line.startswith("featemb train")]
    assert cli(*shlex.split(command)[1:], "--out", out) == 0
    assert "holds this run already" in capsys.readouterr().out
    assert cli("bench", out / "best.toml", "--out", out, "--dry-run") == 0
    assert "2 runs, 1 runs to do" in capsys.readouterr().out
    assert cli("tune", *fixed, "--timeout", "soon") == 2
    assert "cannot read the time 'soon'" in capsys.readouterr().err


def test_without_optuna(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    data = ("--data", "nycflights13_demo", "--method", "hash", "--ratio", 10, "--out", tmp_path)
    assert cli("tune", *data) == 2
    assert "pip install 'featemb[tune]'" in capsys.readouterr().err


def test_optuna_is_loaded_by_a_search_alone() -> None:
    code = "import sys, featemb.benchmarks.search, featemb.cli.tune; print('optuna' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
