"""Runs that go on after a kill: the same record, and nothing left beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from featemb.benchmarks import records
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.run import run_id, run_one
from featemb.benchmarks.sweep import sweep

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"hidden": [16], "cross_layers": 1, "dropout": 0.2}
TRAIN = {"dim": 4, "batch_size": 64, "threads": 1, "eval_every": 10, "patience": 50, "epochs": 6}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, 1500), random.integers(0, 30, 1500)
    logit = random.normal(size=60)[user] + random.normal(size=30)[item]
    frame = {
        "user": user.astype(str),
        "item": item.astype(str),
        "click": (random.random(1500) < 1 / (1 + np.exp(-logit))).astype("int8"),
    }
    path = tmp_path_factory.mktemp("table") / "clicks.parquet"
    pd.DataFrame(frame).to_parquet(path)
    return path


def config(table: Path, **settings: Any) -> RunConfig:
    base: dict[str, Any] = {
        "data": str(table),
        "data_options": {"label": "click"},
        "model_config": MODEL,
        "method": "magnitude",
        "ratio": 2.0,
        **TRAIN,
    }
    return RunConfig(**(base | settings))


def curve(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "curve.parquet")


def equal(one: Path, other: Path) -> None:
    """Two run folders tell the same, but for times."""
    first, second = records.read(one), records.read(other)
    assert first["status"] == second["status"] == "ok"
    assert first["metrics"] == second["metrics"]
    assert first["training"] == second["training"]
    for name in ("serving", "training", "training_parts", "net"):
        assert first["bytes"][name] == second["bytes"][name]
    pd.testing.assert_frame_equal(
        curve(one).drop(columns="seconds"), curve(other).drop(columns="seconds")
    )
    pd.testing.assert_frame_equal(
        pd.read_parquet(one / "predictions.parquet"), pd.read_parquet(other / "predictions.parquet")
    )


def command(table: Path, out: Path) -> list[str]:
    flags = {k.replace("_", "-"): v for k, v in TRAIN.items() if k != "eval_every"}
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    chosen = [text for k, v in MODEL.items() for text in ("--set", f"{k}={v}")]
    return [
        *(
            sys.executable,
            "-c",
            "from featemb.cli import main; main()",
            "train",
            "--data",
            str(table),
            "--label",
            "click",
        ),
        *("--method", "magnitude", "--ratio", "2", "--out", str(out), "--quiet", "--checkpoint"),
        *(*given, *chosen),
    ]


def test_a_killed_command_goes_on(table: Path, tmp_path: Path) -> None:
    run = config(table, eval_every=None)
    name, out = run_id(run), tmp_path / "killed"
    process = subprocess.Popen(command(table, out), cwd=ROOT, env={**os.environ})
    file, end = out / ".checkpoints" / f"{name}.pt", time.monotonic() + 90
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / name).exists()
    before = torch.load(file, weights_only=True)["history"]["records"]
    left = file.with_name(f".{name}.pt.0123")
    left.write_text("half written")

    again = subprocess.run(
        command(table, out), cwd=ROOT, timeout=120, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    run_one(run, tmp_path / "straight")
    equal(tmp_path / "straight" / name, out / name)
    seconds = curve(out / name).seconds.tolist()
    assert seconds[: len(before)] == [one["seconds"] for one in before], "it began anew"
    assert not list((out / ".checkpoints").iterdir())
    assert list(records.read_all(out).records) == [name]


@pytest.mark.parametrize("method", ["magnitude", "cce", "unified(lookups=2)"])
def test_an_interrupted_run_goes_on(method: str, table: Path, tmp_path: Path) -> None:
    run = config(table, method=method, epochs=2)
    name, out = run_id(run), tmp_path / "killed"
    run_one(run, tmp_path / "straight")
    seen = []

    def interrupt(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        if seen.count("epoch") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(run, out, progress=interrupt, checkpoint=True)
    assert (out / ".checkpoints" / f"{name}.pt").is_file()
    (record,) = sweep([run], out, checkpoint=True)
    equal(tmp_path / "straight" / name, out / name)
    assert all(value > 0 for value in record["timings"].values())
    times = record["timings"]
    phases = ("load", "build", "train", "freeze", "evaluate")
    assert times["total"] == pytest.approx(sum(times[phase] for phase in phases))
    assert not list((out / ".checkpoints").iterdir())


def test_without_the_flag_nothing_is_written(table: Path, tmp_path: Path) -> None:
    run_one(config(table, epochs=1), tmp_path)
    assert not (tmp_path / ".checkpoints").exists()


def test_a_damaged_checkpoint_fails_once(table: Path, tmp_path: Path) -> None:
    run = config(table, epochs=1)
    file = records.checkpoint(tmp_path, run_id(run)).path
    file.write_bytes(b"damaged")
    record = run_one(run, tmp_path, checkpoint=True)
    assert record["error"]["type"] == "FormatError"
    assert not file.exists()
    (record,) = sweep([run], tmp_path, retry_failed=True, checkpoint=True)
    assert record["status"] == "ok"
