"""Sweeps: resuming after SIGKILL, sharing a folder, failures, grids from TOML."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featemb import cli
from featemb.benchmarks.grid import Grid, grids
from featemb.benchmarks.protocol import Tuning
from featemb.benchmarks.run import run_id
from featemb.benchmarks.sweep import sweep
from featemb.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parent.parent
TRAIN = {"epochs": 2, "dim": 4, "batch_size": 64, "threads": 1}
MODEL = {"dcnv2": {"hidden": [8], "cross_layers": 1}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small table in which the label follows from the ids."""
    import pandas as pd

    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, 900), random.integers(0, 30, 900)
    chance = 1 / (1 + np.exp(-(random.normal(size=60)[user] + random.normal(size=30)[item])))
    path = tmp_path_factory.mktemp("table") / "clicks.parquet"
    frame = {
        "user": user.astype(str),
        "item": item.astype(str),
        "click": random.random(900) < chance,
    }
    pd.DataFrame(frame).astype({"click": "int8"}).to_parquet(path)
    return path


def grid(table: Path, **settings: Any) -> Grid:
    base = {
        "data": (str(table),),
        "data_options": {str(table): {"label": "click"}},
        "methods": ("hash", "unified(lookups=2)"),
        "ratios": (2, 4),
        "train": TRAIN,
        "model_configs": MODEL,
    }
    return Grid(**{**base, **settings})


def written(folder: Path) -> dict[str, int]:
    """Run name -> time of its record."""
    found = [path for path in folder.glob("*/run.json") if not path.parent.name.startswith(".")]
    return {path.parent.name: path.stat().st_mtime_ns for path in found}


def bench(table: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    code = "import sys; from featemb.cli import main; main(sys.argv[1:])"
    flags = ["--label", "click", "--method", "hash", "--method", "unified(lookups=2)"]
    flags += ["--ratio", "2", "--ratio", "4", "--dim", "4", "--batch-size", "64"]
    flags += ["--epochs", "2", "--threads", "1", "--set", "hidden=[8]", "--out", str(out), *more]
    return subprocess.Popen(
        [sys.executable, "-c", code, "bench", "--data", str(table), *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_killed_sweep_continues_and_redoes_nothing(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    seeds = [flag for seed in range(4) for flag in ("--seed", str(seed))]
    process = bench(table, out, *seeds)
    end = time.monotonic() + 90
    while not written(out):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = written(out)
    configs = grid(table, model_configs={"dcnv2": {"hidden": [8]}}, seeds=range(4)).runs()
    names = {run_id(config) for config in configs}
    assert first.keys() < names, "killed after the first run, before the last"
    for name in first:  # whole, every file of it
        record = json.loads((out / name / "run.json").read_text())
        assert record["status"] == "ok"
        assert (out / name / "predictions.parquet").stat().st_size > 0
    found = sweep(configs, out)
    assert {record["run_id"] for record in found} == names == written(out).keys()
    assert all(record["status"] == "ok" for record in found)
    assert {name: written(out)[name] for name in first} == first, "finished runs were done again"
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp-")]


def test_two_sweeps_in_one_folder_share_the_work(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    seeds = ["--seed", "0", "--seed", "1"]
    processes = [bench(table, out, *seeds) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    names = {
        run_id(config)
        for config in grid(table, model_configs={"dcnv2": {"hidden": [8]}}, seeds=(0, 1)).runs()
    }
    assert written(out).keys() == names
    starts = [
        line.split()[-1] for text in outputs for line in text.splitlines() if "] start " in line
    ]
    assert sorted(starts) == sorted(names), "every run was done once"


def test_failed_run_does_not_stop_the_others(table: Path, tmp_path: Path) -> None:
    configs = grid(table, methods=("unified",), ratios=(2,), budgets=("4B",)).runs()
    found = {record["config"]["budget"]: record for record in sweep(configs, tmp_path)}
    assert found[4]["status"] == "failed"
    assert found[4]["error"]["type"] == "BudgetError"
    assert "BudgetError" in found[4]["error"]["traceback"]
    assert found[None]["status"] == "ok"
    before = written(tmp_path)
    sweep(configs, tmp_path)
    assert written(tmp_path) == before, "failed runs wait to be asked for"
    sweep(configs, tmp_path, retry_failed=True)
    changed = {name for name, when in written(tmp_path).items() if when != before[name]}
    assert changed == {found[4]["run_id"]}


def test_loss_that_is_not_finite_is_a_failed_run(table: Path, tmp_path: Path) -> None:
    settings = {**TRAIN, "lr": 1e30, "optimizer": "row_sgd"}
    (record,) = sweep(grid(table, methods=("full",), train=settings).runs(), tmp_path)
    assert record["status"] == "failed"
    assert "loss" in record["error"]["message"]


def test_interrupt_leaves_no_half_run(table: Path, tmp_path: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(grid(table).runs(), tmp_path, progress=interrupt)
    assert not written(tmp_path)


@pytest.mark.slow
def test_jobs_share_the_runs(table: Path, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    configs = grid(table, ratios=(2,)).runs()
    found = sweep(configs, tmp_path, jobs=2, progress=events.append)
    assert len(found) == len(configs) == 3
    assert sorted(e["run_id"] for e in events if e["event"] == "end") == sorted(written(tmp_path))
    again: list[dict[str, Any]] = []
    sweep(configs, tmp_path, jobs=2, progress=again.append)
    assert {event["event"] for event in again} == {"skip"}


TOML = """
[sweep]
data = ["nycflights13_demo"]
models = ["dcnv2", "lr"]
methods = ["full+int8", "hash", "unified(lookups=2)", "unified(lookups=1)"]
ratios = [10]
budgets = ["10kB"]
seeds = [0, 1]
[train]
lr = 0.01
[model.dcnv2]
hidden = [4]
[[override]]
method = "hash"
lr = 0.5
[[override]]
method = "hash"
model = "lr"
lr = 0.25
"""


def from_text(tmp_path: Path, text: str) -> Grid:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return Grid.from_toml(path)


def test_grid_lays_out_references_sizes_and_overrides(tmp_path: Path) -> None:
    runs = from_text(tmp_path, TOML).runs()
    deep = [run for run in runs if run.model == "dcnv2" and run.seed == 0]
    sizes = [(run.method, run.ratio, run.budget) for run in deep]
    assert sizes == [
        ("full", None, None),
        ("full+int8", None, None),
        ("hash", 10.0, None),
        ("hash", None, 10_000),
        ("unified(lookups=2)", 10.0, None),
        ("unified(lookups=2)", None, 10_000),
        ("unified", 10.0, None),
        ("unified", None, 10_000),
    ]
    assert {run.lr for run in deep if run.method == "hash"} == {0.5}
    assert {run.lr for run in deep if run.method != "hash"} == {0.01}
    flat = [run for run in runs if run.model == "lr"]
    assert {run.lr for run in flat if run.method == "hash"} == {0.25}
    assert {run.dim for run in flat} == {1}
    assert len(flat) == 2 * 6, "at width 1 the two unified methods are one"
    assert deep[0].model_config["hidden"] == [4]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ratios", "ratioes", "did you mean 'ratios'"),
        ("[train]", "[trian]", "did you mean 'train'"),
        ("lr = 0.01", "lrr = 0.01", "did you mean 'lr'"),
        ("hidden", "hiden", "did you mean 'hidden'"),
        ('"dcnv2", "lr"]', '"dcnv3", "lr"]', "did you mean 'dcnv2'"),
        ('"hash", ', '"hsah", ', "did you mean 'hash'"),
        ('method = "hash"\nmodel = "lr"', 'method = "hash"\nmodel = "fm"', "not in the sweep"),
        ("[0, 1]", "0", "must be a list"),
        ("[0, 1]", "[]", "seeds is empty"),
        ("[0, 1]", "[-1]", "seed must be"),
        ("[10]", "[0]", "ratio"),
        ("10kB", "10 potatoes", "potatoes"),
        ("lr = 0.01", "lr = 'x'", "lr must be"),
        ("[sweep]", "[sweep", "not a TOML file"),
    ],
)
def test_grid_names_what_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in TOML
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")):
        from_text(tmp_path, TOML.replace(old, new, 1)).runs()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "configs").glob("*.toml")), ids=lambda path: path.stem
)
def test_packaged_sweeps_are_valid(path: Path) -> None:
    for grid in grids(path):
        runs = grid.runs()
        assert len(set(runs)) == len(runs) > 1
        assert runs[0].method == "full"


def test_dead_worker_is_told(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATEMB_CACHE", str(tmp_path / "cache"))

    def kill_workers(event: dict[str, Any]) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(RunError, match="died"):
        sweep(grid(table, ratios=(2,)).runs(), tmp_path / "runs", jobs=2, progress=kill_workers)


PARTS = """
[sweep]
data = ["synthetic"]
methods = ["hash"]
ratios = [4]

[train]
dim = 4

[[part]]

[[part]]
methods = ["unified(lookups=2)"]
ratios = [2, 8]
seeds = [0, 1]

[[part]]
models = ["deepfm"]
data = ["nycflights13_demo"]

[data.synthetic]
rows = 500

[[override]]
method = "unified"
lr = 0.5

[[override]]
data = "nycflights13_demo"
dim = 7
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_parts_of_a_file(tmp_path: Path) -> None:
    first, second, third = grids(write(tmp_path / "s.toml", PARTS))
    assert [run.method for run in first.runs()] == ["full", "hash"]
    sizes = [(run.method.split("(")[0], run.ratio, run.seed, run.lr) for run in second.runs()]
    assert sizes == [
        ("full", None, 0, 1e-3),
        ("full", None, 1, 1e-3),
        *[("unified", ratio, seed, 0.5) for ratio in (2, 8) for seed in (0, 1)],
    ]
    assert {(run.data, run.model, run.dim) for run in third.runs()} == {
        ("nycflights13_demo", "deepfm", 7)
    }
    assert first.data_options == {"synthetic": {"rows": 500}}
    assert third.data_options == {}
    with pytest.raises(ConfigError, match="one part is wanted, the file has 3"):
        Grid.from_toml(tmp_path / "s.toml")


def test_tables_of_a_part_lie_over_those_of_the_file(tmp_path: Path) -> None:
    text = """
[sweep]
data = ["synthetic"]
[train]
dim = 4
epochs = 3
[model.dcnv2]
hidden = [8]
dropout = 0.5
[tune]
lr = [0.1]
[[part]]
[[part]]
[part.train]
epochs = 5
[part.model.dcnv2]
hidden = [16, 16]
[part.tune]
lr = [0.2, 0.3]
seed = 7
"""
    first, second = grids(write(tmp_path / "s.toml", text))
    (run,) = first.runs()
    assert (run.dim, run.epochs, run.model_config["hidden"]) == (4, 3, [8])
    (run,) = second.runs()
    assert (run.dim, run.epochs, run.model_config["hidden"]) == (4, 5, [16, 16])
    assert run.model_config["dropout"] == 0.5
    assert first.tune == Tuning(values={"lr": (0.1,)})
    assert second.tune == Tuning(values={"lr": (0.2, 0.3)}, seed=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('method = "unified"', 'method = "qr"'), "'qr' is not in the sweep"),
        (("[data.synthetic]", "[data.other]"), "'other'"),
        (("models = [", "modles = ["), r"\[\[part\]\]: unknown setting 'modles'"),
        (("models = [", "model = ["), r"\[part.model\] must be a table, got \['deepfm'\]"),
        (("seeds = [0, 1]", "train = 2"), r"\[part.train\] must be a table, got 2"),
        (("seeds = [0, 1]", "tune.lrr = [1]"), r"\[tune\]: unknown setting 'lrr'"),
        (("seeds = [0, 1]", "seeds = 2"), r"\[\[part\]\] seeds must be a list, got 2"),
    ],
)
def test_a_wrong_part_is_refused(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        grids(write(tmp_path / "s.toml", PARTS.replace(*change)))


def test_parts_are_one_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.toml", PARTS)
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", str(path), "--dry-run", "--out", str(tmp_path / "runs")])
    assert not end.value.code
    # the full table of seed 0 is in the first part and in the second one
    assert "\n9 runs, 9 runs to do" in capsys.readouterr().out
