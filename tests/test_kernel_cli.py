"""``--kernel fbgemm``: runs, their names and records, and what is refused before data are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featemb.benchmarks import sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.distributed import Ranks
from featemb.benchmarks.grid import grids
from featemb.benchmarks.network import build_network
from featemb.benchmarks.paste import command, toml
from featemb.benchmarks.run import run_one
from featemb.benchmarks.stepping import Stepper
from featemb.cli import main
from featemb.errors import ConfigError
from featemb.fbgemm.choice import kernel_of

pytest.importorskip("fbgemm_gpu")

TRAINING = ("--optimizer", "row_adagrad", "--lr", "0.05", "--epochs", "2", "--batch-size", "64")
SMALL = ("--dim", "6", "--set", "hidden=[8]", "--threads", "1", "--quiet", *TRAINING)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, 900), random.integers(0, 40, 900)
    click = (random.random(900) < 0.2 + 0.5 * (user % 2)).astype("int8")
    path = tmp_path_factory.mktemp("table") / "clicks.parquet"
    frame = {"user": user.astype(str), "item": item.astype(str), "click": click}
    pd.DataFrame(frame).to_parquet(path)
    return path


def cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([str(one) for one in arguments])
    return int(raised.value.code or 0)


def recorded(folder: Path) -> dict[str, Any]:
    (record,) = (json.loads(one.read_text()) for one in folder.glob("*/run.json"))
    return dict(record)


def test_a_run_of_each_kernel(table: Path, tmp_path: Path) -> None:
    found = {}
    for kernel in ("torch", "fbgemm"):
        out = tmp_path / kernel
        flags = (
            "train",
            "--data",
            table,
            "--label",
            "click",
            "--model",
            "deepfm",
            "--method",
            "qr",
        )
        more = ("--checkpoint", "--kernel", kernel, "--out", out)
        assert cli(*flags, "--set", "dropout=0.0", *SMALL, *more) == 0
        found[kernel] = recorded(out)
    ours, theirs = found["torch"], found["fbgemm"]
    assert "kernel" not in ours["config"]
    assert theirs["config"] == ours["config"] | {"kernel": "fbgemm"}
    assert [one["training"]["kernel"] for one in (ours, theirs)] == ["torch", "fbgemm"]
    assert ours["run_id"] != theirs["run_id"]
    assert ours["bytes"]["parts"] == theirs["bytes"]["parts"]
    assert theirs["bytes"]["training_parts"]["padding"] > 0
    for part in ("valid", "test"):
        scores = [one["metrics"][part]["logloss"]["value"] for one in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_a_sweep_names_the_kernel(table: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        f"[sweep]\ndata = ['{table}']\nmodels = ['deepfm']\nmethods = ['cafe']\nratios = [4]\n"
        "[train]\nkernel = 'fbgemm'\noptimizer = 'row_adagrad'\nepochs = 1\ndim = 4\n"
        f"[data.'{table}']\nlabel = 'click'\n[model.deepfm]\nhidden = [4]\n"
    )
    runs = [run for grid in grids(file) for run in grid.runs()]
    assert {run.kernel for run in runs} == {"fbgemm"}
    assert cli("bench", file, "--out", tmp_path / "runs", "--quiet") == 1
    records = [json.loads(one.read_text()) for one in (tmp_path / "runs").glob("*/run.json")]
    status = {one["config"]["method"]: one["status"] for one in records}
    assert status.pop("full") == "ok"
    assert [*status.values()] == ["failed"]
    (failed,) = (one["error"] for one in records if one["error"])
    assert failed["type"] == "ConfigError"
    assert "cannot train the rows: cafe" in failed["message"]


def test_a_run_as_text(table: Path) -> None:
    how: dict[str, Any] = {"data": str(table), "kernel": "fbgemm", "optimizer": "row_sgd"}
    config = RunConfig(**how)
    assert "--kernel fbgemm" in command(config)
    assert 'kernel = "fbgemm"' in toml(config)
    assert RunConfig.from_dict(config.identity()) == config
    assert "kernel" not in RunConfig(data=str(table)).identity()
    assert "kernel" not in RunConfig(data=str(table), kernel="torch").identity()


def test_steps_that_are_timed_are_of_the_kernel(table: Path) -> None:
    options = {"data_options": {"label": "click"}, "optimizer": "row_adagrad", "dim": 4}
    config = RunConfig(data=str(table), kernel="fbgemm", **options)
    dataset = sources.load(config)
    stepper = Stepper(build_network(config, dataset.schema), config, dataset)
    assert kernel_of(stepper.net) == "fbgemm"
    assert stepper() > 0
    assert any(type(one).__name__ == "FbgemmSteps" for one in stepper.optimizers)


@pytest.mark.parametrize(
    ("flags", "words"),
    {
        ("--kernel", "fbgemm"): "no optimizer 'row_adam' on cpu; Allowed: row_sgd, row_adagrad",
        ("--kernel", "fbgem"): "unknown kernel 'fbgem'; did you mean 'fbgemm'",
        ("--kernel", "fbgemm", *TRAINING, "--weight-decay", "0.1"): "no weight decay",
        ("--kernel", "fbgemm", *TRAINING, "--distributed"): "the rows of one process",
    }.items(),
)
def test_what_cannot_be_is_said_first(flags: Any, words: str, tmp_path: Path, capsys: Any) -> None:
    code = cli("train", "--data", "no such file.csv", "--out", tmp_path / "runs", *flags)
    assert code != 0
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_several_processes_have_an_engine_of_their_own(table: Path, tmp_path: Path) -> None:
    options = {"data_options": {"label": "click"}, "optimizer": "row_adagrad", "dim": 4}
    config = RunConfig(data=str(table), kernel="fbgemm", **options)
    with pytest.raises(ConfigError, match="the rows of one process"):
        run_one(config, tmp_path, side=Ranks())
