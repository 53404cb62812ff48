"""Equal tuning before a sweep: what is tried, what is chosen, what a report reads of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featemb.benchmarks import protocol, records
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.grid import Grid, grids
from featemb.benchmarks.protocol import Tuning
from featemb.benchmarks.run import run_id
from featemb.cli import main
from featemb.errors import ConfigError, RunError

DATA = {"synthetic": {"rows": 1500, "cardinalities": [60, 30], "signal": 2.0}}
TRAIN = {"epochs": 2, "dim": 4, "batch_size": 64, "threads": 1}
MODEL = {"dcnv2": {"hidden": [8], "cross_layers": 1}}

TOML = """
[sweep]
data = ["synthetic"]
methods = ["hash", "full+int8"]
ratios = [2, 4]
seeds = [0, 1]

[tune]
lr = [1e-5, 1e-2, 1e-3]
ratio = 4

[train]
dim = 4
epochs = 2
batch_size = 64
threads = 1

[data.synthetic]
rows = 1500
cardinalities = [60, 30]
signal = 2.0

[model.dcnv2]
hidden = [8]
cross_layers = 1
"""


def grid(**settings: Any) -> Grid:
    base = {"data_options": DATA, "train": TRAIN, "model_configs": MODEL, "ratios": (2, 4)}
    return Grid(**{"data": ("synthetic",), "methods": ("hash",), **base, **settings})


def file(folder: Path, text: str = TOML) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([str(one) for one in arguments])
    return int(raised.value.code or 0)


def trials(path: Path) -> list[RunConfig]:
    (one,) = grids(path)
    assert one.tune is not None
    questions = protocol.plan(one.runs(), one.tune)
    return [trial for question in questions for trial in question.trials]


def valid_auc(folder: Path, config: RunConfig) -> float:
    record = json.loads((folder / run_id(config) / "run.json").read_text())
    return float(record["metrics"]["valid"]["auc"]["value"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[tune]\nlrr = [1.0]\n", "did you mean 'lr'"),
        ("[tune]\nseed = 1\n", "names no setting"),
        ("[tune]\nlr = 0.1\n", "must be a list of values"),
        ("[tune]\nlr = []\n", "list of different values"),
        ("[tune]\nlr = [0.1, 0.1]\n", "list of different values"),
        ("[tune]\nlr = [-1.0, 1.0]\n", "lr must be a number > 0"),
        ("[tune]\nlr = [0.1]\nseed = -1\n", "seed must be"),
        ("[tune]\nlr = [0.1]\nratio = 'x'\n", "ratio must be"),
        ("[tune]\nlr = [0.1]\nmodel = 'dcn'\n", "'dcn' is not in the sweep"),
        ("[tune]\nbatch_size = [64, 128]\n", r"\[train\] sets 'batch_size', which \[tune\] tries"),
        ("[tune]\nlr = [0.1]\n[[override]]\nlr = 0.1\n", r"\[\[override\]\] sets 'lr'"),
        ("tune = 3\n", r"\[tune\] must be a table"),
    ],
)
def test_a_wrong_table_is_named(table: str, message: str, tmp_path: Path) -> None:
    start, end = TOML.index("[tune]"), TOML.index("[train]")
    text = table + TOML[:start] + TOML[end:]
    path = file(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        trials(path)


def test_every_method_tries_the_same_values() -> None:
    tuning = Tuning(values={"lr": (0.1, 0.2), "weight_decay": (0.0, 1e-3)}, seed=7, ratio=4)
    sweep = grid(methods=("hash", "hash(power=1.0)", "full+int8", "hash(rows=20)"))
    questions = protocol.plan(sweep.runs(), tuning)
    methods = ["full", "hash", "hash(power=1.0)", "full+int8", "hash(rows=20)"]
    assert [one.kind for one in questions] == [("synthetic", name, "dcnv2") for name in methods]
    tried = [{(t.lr, t.weight_decay) for t in one.trials} for one in questions]
    assert tried == [{(0.1, 0.0), (0.1, 1e-3), (0.2, 0.0), (0.2, 1e-3)}] * 5
    assert {t.seed for one in questions for t in one.trials} == {7}
    sizes = [{(t.ratio, t.budget) for t in one.trials} for one in questions]
    own = {(None, None)}
    assert sizes == [own, {(4.0, None)}, {(4.0, None)}, own, own]


@pytest.mark.parametrize(
    ("wanted", "sizes", "expected"),
    [
        (1e6, {}, (2.0, None)),
        (1e6, {"ratios": (1e6, 3)}, (3.0, None)),
        (1e6, {"ratios": (), "budgets": (5, 900, 400)}, (None, 900)),
        (None, {}, (2.0, None)),
        (None, {"ratios": (), "budgets": ()}, (None, None)),
    ],
)
def test_a_size_that_is_out_of_reach_gives_way(
    wanted: float | None, sizes: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    configs = grid(methods=("hash",), **sizes).runs()
    questions = protocol.plan(configs, Tuning(values={"lr": (0.1, 0.2)}, ratio=wanted))
    assert {(one.ratio, one.budget) for one in questions[1].trials} == {expected}


def test_no_size_to_tune_at_leaves_the_settings(tmp_path: Path) -> None:
    configs = grid(methods=("hash",), ratios=(1e6,)).runs()
    tuning = Tuning(values={"lr": (0.1, 0.2)})
    question = protocol.plan(configs, tuning)[1]
    assert question.trials == ()
    (made,) = protocol.choices([question], tmp_path)
    assert made.chosen == {"lr": 1e-3}, "the default of RunConfig"


def test_one_model_chooses_for_all() -> None:
    configs = grid(models=("dcnv2", "fm")).runs()
    questions = protocol.plan(configs, Tuning(values={"lr": (0.1, 0.2)}, model="dcnv2"))
    assert {one.kind[2] for one in questions} == {"dcnv2"}
    made = [protocol.Choice(one, (0.5, 0.6), {"lr": 0.2}) for one in questions]
    runs = protocol.chosen(configs, Tuning(values={"lr": (0.1, 0.2)}, model="dcnv2"), made)
    assert {(run.model, run.lr) for run in runs} == {("dcnv2", 0.2), ("fm", 0.2)}
    each = protocol.plan(configs, Tuning(values={"lr": (0.1, 0.2)}))
    assert {one.kind[2] for one in each} == {"dcnv2", "fm"}


def test_a_part_without_the_tuned_model_is_tuned_on_its_own() -> None:
    configs = grid().runs() + grid(models=("fm",), methods=("full+int8",)).runs()
    questions = protocol.plan(configs, Tuning(values={"lr": (0.1, 0.2)}, model="dcnv2"))
    kinds = [one.kind[1:] for one in questions]
    assert kinds == [("full", "dcnv2"), ("hash", "dcnv2"), ("full+int8", "fm")]


def test_best_validation_auc_wins_and_is_written(tmp_path: Path) -> None:
    (sweep,) = grids(file(tmp_path))
    assert sweep.tune is not None
    out = tmp_path / "runs"
    configs = sweep.runs()
    runs, made = protocol.tune(configs, sweep.tune, out)
    assert len(runs) == len(configs)
    assert len(made) == 3
    for choice in made:
        auc = {one.lr: valid_auc(out, one) for one in choice.question.trials}
        assert list(auc) == [1e-5, 1e-2, 1e-3]
        assert choice.scores == tuple(auc.values())
        best = max(auc, key=lambda lr: auc[lr])
        assert choice.chosen == {"lr": best}
        mine = [run for run in runs if run.method == choice.question.kind[1]]
        assert {run.lr for run in mine} == {best}
    done = {path.name for path in out.iterdir() if (path / "run.json").exists()}
    assert len(done) == 3 * 3
    wanted = {run_id(run) for run in runs}
    assert len(done & wanted) == 3, "a trial with the settings chosen is a run of the sweep"
    assert set(records.read_all(out).records) == done & wanted, "a report reads the sweep alone"
    entries = json.loads((out / "tuned.json").read_text())["choices"]
    assert [entry["method"] for entry in entries] == ["full", "hash", "full+int8"]
    assert entries[1]["ratio"] == 4
    assert [trial["values"] for trial in entries[1]["trials"]] == [
        {"lr": 1e-5},
        {"lr": 1e-2},
        {"lr": 1e-3},
    ]
    again: list[dict[str, Any]] = []
    assert protocol.tune(configs, sweep.tune, out, progress=again.append) == (runs, made)
    assert {event["event"] for event in again} == {"skip"}


def test_failed_trials_are_not_chosen(tmp_path: Path) -> None:
    configs = grid(train={**TRAIN, "optimizer": "row_sgd", "epochs": 1}).runs()
    tuning = Tuning(values={"lr": (1e30, 1e-3)}, ratio=4)
    runs, made = protocol.tune(configs, tuning, tmp_path)
    assert all(isinstance(choice.scores[0], str) for choice in made)
    assert {run.lr for run in runs} == {1e-3}
    runs, made = protocol.tune(configs, replace(tuning, values={"lr": (1e30,)}), tmp_path)
    assert {run.lr for run in runs} == {configs[0].lr}, "nothing to choose from"
    document = json.loads((tmp_path / "tuned.json").read_text())
    assert [entry["chosen"] for entry in document["choices"]] == [{"lr": 1e-3}] * 2
    assert len(document["only_tuning"]) == 2, "failed trials"
    assert document["choices"][0]["trials"][0]["error"].startswith("RunError")


def test_choices_of_two_sweeps_lie_side_by_side(tmp_path: Path) -> None:
    tuning = Tuning(values={"lr": (1e-5, 1e-2)}, ratio=4)
    short = {**TRAIN, "epochs": 1}
    first, _ = protocol.tune(grid(methods=("full",), train=short).runs(), tuning, tmp_path)
    later = grid(methods=("hash",), train=short).runs()
    second, _ = protocol.tune(later[1:], tuning, tmp_path)
    methods = [entry["method"] for entry in records.read_tuned(tmp_path)["choices"]]
    assert methods == ["full", "hash"]
    assert set(records.read_all(tmp_path).records) == {
        run_id(run) for run in (*first, *second) if (tmp_path / run_id(run)).is_dir()
    }


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "tuned.json").write_text("{")
    with pytest.raises(RunError, match=r"tuned\.json"):
        records.read_all(tmp_path)
    (tmp_path / "tuned.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="format 99"):
        records.read_all(tmp_path)


def test_bench_tunes_then_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    text = TOML.replace("epochs = 2", "epochs = 1").replace("[0, 1]", "[0]")
    command = ["bench", str(file(tmp_path, text)), "--out", str(out)]
    assert cli(*command, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "to choose settings" in told
    assert "9 runs, 9 runs to do" in told
    assert "0 of 3 choices made" in told
    assert not out.exists()
    assert cli(*command) == 0
    told = capsys.readouterr().out
    assert "choosing lr for 3 methods" in told
    assert told.count("chosen") == 3
    assert len(records.read_all(out).records) == 4
    assert cli(*command, "--dry-run") == 0
    assert "3 of 3 choices made" in capsys.readouterr().out
    assert cli(*command, "--lr", 0.1) == 2
    assert "[train] sets 'lr'" in capsys.readouterr().err


def test_parts_are_tuned_each_by_its_own_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """
[sweep]
data = ["synthetic"]
methods = ["hash"]
ratios = [4]
[data.synthetic]
rows = 400
[data.planted_equal]
rows = 400
[train]
dim = 4
epochs = 1
[model.dcnv2]
hidden = [4]
[[part]]
[part.tune]
lr = [1e-4, 1e-2]
[[part]]
data = ["planted_equal"]
[part.tune]
lr = [1e-3]
[[part]]
data = ["planted_equal"]
ratios = [8]
[part.tune]
lr = [1e-3]
"""
    out = tmp_path / "runs"
    assert cli("bench", str(file(tmp_path, text)), "--out", str(out), "--quiet") == 0
    found = records.read_all(out).records.values()
    configs = [record["config"] for record in found]
    assert {(one["data"], one["ratio"]) for one in configs} == {
        *(("synthetic", size) for size in (None, 4.0)),
        *(("planted_equal", size) for size in (None, 4.0, 8.0)),
    }
    assert {one["lr"] for one in configs if one["data"] == "planted_equal"} == {1e-3}
    assert {one["lr"] for one in configs if one["data"] == "synthetic"} <= {1e-4, 1e-2}
    kinds = {(one["data"], one["method"]) for one in records.read_tuned(out)["choices"]}
    assert len(kinds) == 4
    clash = file(tmp_path, text.replace("lr = [1e-3]", "lr = [1e-2]", 1))
    assert cli("bench", str(clash), "--out", str(out)) == 2
    assert "two parts of the sweep tune 'planted_equal'" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_do_not_change_the_choice(tmp_path: Path) -> None:
    (sweep,) = grids(file(tmp_path))
    assert sweep.tune is not None
    alone = protocol.tune(sweep.runs(), sweep.tune, tmp_path / "one")
    shared = protocol.tune(sweep.runs(), sweep.tune, tmp_path / "two", jobs=2)
    assert alone == shared
    assert records.read_tuned(tmp_path / "one") == records.read_tuned(tmp_path / "two")
