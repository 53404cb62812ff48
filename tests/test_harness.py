"""One run: its configuration, network, training, record and numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from featemb import models
from featemb.benchmarks import records, sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import predict
from featemb.benchmarks.network import build_network, full_bytes
from featemb.benchmarks.run import run_id, run_one
from featemb.errors import BudgetError, ConfigError
from featemb.schema import Feature, Schema
from featemb.spec import parse

SCHEMA = Schema([Feature("user", 700), Feature("item", 300), Feature("hour", 24)], ["age"])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that an embedding model overfits soon: many ids, few rows each."""
    random = np.random.default_rng(0)
    user, item = random.integers(0, 300, 2400), random.integers(0, 100, 2400)
    logit = random.normal(size=300)[user] + random.normal(size=100)[item]
    frame = {
        "user": user.astype(str),
        "item": item.astype(str),
        "click": (random.random(2400) < 1 / (1 + np.exp(-logit))).astype("int8"),
    }
    path = tmp_path_factory.mktemp("table") / "clicks.parquet"
    pd.DataFrame(frame).to_parquet(path)
    return path


def config(table: Path, **settings: Any) -> RunConfig:
    base: dict[str, Any] = {
        "data": str(table),
        "data_options": {"label": "click"},
        "model_config": {"hidden": [16], "cross_layers": 1, "dropout": 0.0},
        "dim": 8,
        "epochs": 3,
        "batch_size": 64,
        "threads": 1,
    }
    return RunConfig(**{**base, **settings})


@pytest.fixture(scope="module")
def done(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that ended well, and its folder."""
    out = tmp_path_factory.mktemp("runs")
    run = config(table, method="unified(lookups=2)+int8", ratio=4, epochs=40, lr=1e-2)
    record = run_one(run, out)
    assert record["status"] == "ok", record["error"]
    return out / record["run_id"], record


def test_record_is_the_one_on_disk(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    assert json.loads((folder / "run.json").read_text()) == json.loads(json.dumps(record))
    assert records.read(folder)["run_id"] == folder.name
    settings = {k: v for k, v in record["config"].items() if not k.endswith("sha256")}
    assert RunConfig.from_dict(settings).method == "unified(lookups=2)+int8"
    names = {"load", "build", "train", "evaluate", "freeze", "total", "step_ms", "rows_per_second"}
    assert names <= record["timings"].keys()
    assert all(value > 0 for value in record["timings"].values())
    assert record["bytes"]["peak_device"] is None
    assert record["bytes"]["peak_rss"] > 10**7


def test_bytes_are_counted(done: tuple[Path, dict[str, Any]]) -> None:
    size = done[1]["bytes"]
    assert size["full"] == 4 * 8 * done[1]["data"]["values"]
    assert size["serving"] == sum(size["parts"].values()) <= size["full"] / 4
    assert size["ratio"] == size["full"] / size["serving"] >= 4
    # fp32 rows and Adam's two moments beside int8 rows
    assert size["training"] == sum(size["training_parts"].values()) > 6 * size["serving"]
    assert size["training_parts"]["optimizer state"] > 0


def test_the_solved_method_is_recorded(done: tuple[Path, dict[str, Any]]) -> None:
    solved = parse(done[1]["solved"])
    assert (solved.method.name, solved.codec.name) == ("unified", "int8")
    assert "rows=" in done[1]["solved"]


def test_the_served_model_is_kept_where_asked(table: Path, tmp_path: Path) -> None:
    run = config(table, method="unified(lookups=2)+int8", ratio=4, epochs=1)
    record = run_one(run, tmp_path, save_model=True)
    folder = tmp_path / record["run_id"]
    net = models.load(folder / "model.safetensors")
    test = sources.load(run).splits["test"]
    score = predict(net, test, 64, torch.device("cpu"))
    told = pd.read_parquet(folder / "predictions.parquet")["score"]
    np.testing.assert_allclose(score, told, rtol=1e-6)
    assert net.memory().serving == record["bytes"]["serving"]
    again = run_one(replace(run, seed=1), tmp_path)
    assert not (tmp_path / again["run_id"] / "model.safetensors").exists()


def test_curve_and_early_stopping(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    curve = pd.read_parquet(folder / "curve.parquet")
    training = record["training"]
    assert training["stopped_early"], "the table is meant to be overfitted"
    assert len(curve) == training["epochs_run"] < 40
    assert training["best_epoch"] == training["epochs_run"] - 2
    best = curve.loc[curve["valid_auc"].idxmax()]
    assert (best["epoch"], best["valid_auc"]) == (
        training["best_epoch"],
        training["best_valid_auc"],
    )
    # int8 rows move the scores a little; the weights of another epoch would move them more
    valid = record["metrics"]["valid"]["auc"]["value"]
    assert valid == pytest.approx(training["best_valid_auc"], abs=2e-3)


def test_metrics_are_those_of_the_predictions(done: tuple[Path, dict[str, Any]]) -> None:
    from sklearn.metrics import log_loss, roc_auc_score

    folder, record = done
    frame = pd.read_parquet(folder / "predictions.parquet")
    test = record["metrics"]["test"]
    assert len(frame) == test["rows"] == record["data"]["rows"]["test"]
    label, score = frame["label"], frame["score"].astype("float64")
    assert test["auc"]["value"] == pytest.approx(roc_auc_score(label, score), abs=1e-9)
    assert test["logloss"]["value"] == pytest.approx(log_loss(label, score), rel=1e-5)
    assert test["auc"]["low"] < test["auc"]["value"] < test["auc"]["high"]
    assert test["auc"]["value"] > 0.55
    assert test["calibration"] == pytest.approx(score.mean() / label.mean(), rel=1e-5)


def test_same_seed_same_answer(table: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    dropped = config(table, model_config={"hidden": [16], "dropout": 0.5}, method="hash", ratio=3)
    first = run_one(dropped, tmp_path / "a")
    torch.manual_seed(2)  # the caller's generator decides nothing
    second = run_one(dropped, tmp_path / "b")
    other = run_one(replace(dropped, seed=1), tmp_path / "a")
    assert first["metrics"] == second["metrics"]
    assert first["metrics"] != other["metrics"]


def test_rows_subsample_the_training_split_only(table: Path, tmp_path: Path) -> None:
    whole = sources.load(config(table))
    record = run_one(config(table, rows=200, epochs=1), tmp_path)
    assert record["data"]["rows"]["train"] == 200
    assert record["data"]["rows"]["test"] == len(whole.splits["test"])
    counts = sum(int(f.counts.sum()) for f in whole.schema.features if f.counts is not None)
    small = sources.subsample(whole, 200, 0)
    kept = sum(int(f.counts.sum()) for f in small.schema.features if f.counts is not None)
    assert kept == 200 * 2 < counts, "counts are those of the rows that are trained on"


def test_identity_is_content_not_place(table: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / table.name
    moved.parent.mkdir()
    moved.write_bytes(table.read_bytes())
    assert run_id(config(table)) == run_id(config(moved, threads=None))
    assert run_id(config(table)) != run_id(config(table, seed=1))
    assert run_id(config(table)) != run_id(config(table, lr=0.5))
    assert run_id(config(table, budget="1kB")) == run_id(config(table, budget=1000))
    moved.write_bytes(table.read_bytes() + b" ")
    assert run_id(config(table)) != run_id(config(moved))


@pytest.mark.parametrize("model", models.names())
@pytest.mark.parametrize("method", ["hash", "unified(lookups=2)", "unified+int4"])
@pytest.mark.parametrize("size", [{"ratio": 7.3}, {"budget": 10_007}])
def test_no_model_takes_more_than_asked(model: str, method: str, size: dict[str, Any]) -> None:
    run = RunConfig(data="any", model=model, method=method, dim=12, **size)
    if run.dim == 1:
        size = {name: value / 4 if name == "budget" else value for name, value in size.items()}
        run = replace(run, **{name: int(value) for name, value in size.items()})
    net = build_network(run, SCHEMA)
    limit = run.budget if isinstance(run.budget, int) else full_bytes(net) / (run.ratio or 1)
    serving = sum(layer.memory().serving for layer in net.embeddings())
    assert serving <= limit
    assert serving > 0.9 * limit, "and not much less"
    assert full_bytes(net) == 4 * 1024 * sum(layer.dim for layer in net.embeddings())


def test_budget_below_the_floor() -> None:
    with pytest.raises(BudgetError) as error:
        build_network(RunConfig(data="any", model="deepfm", method="hash", budget=100), SCHEMA)
    assert error.value.floor > 100


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "unifed"}, "did you mean 'unified'"),
        ({"model": "dcn2"}, "did you mean 'dcnv2'"),
        ({"model_config": {"hiden": [3]}}, "did you mean 'hidden'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"ratio": 2, "budget": 100}, "not both"),
        ({"ratio": float("nan")}, "ratio must be"),
        ({"ratio": -1}, "ratio must be"),
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"seed": True}, "seed must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"lr": 0}, "lr must be a number > 0"),
        ({"rows": 0}, "rows must be"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "is not there"),
        ({"data": ""}, "data must be"),
    ],
)
def test_config_names_what_is_wrong(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RunConfig(**{"data": "any", **settings})


def test_config_round_trip() -> None:
    run = RunConfig(data="any", method="unified( lookups = 2 ) + int8", ratio=3)
    assert run.method == "unified(lookups=2)+int8"
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        RunConfig.from_dict({"data": "any", "batchsize": 3})


@pytest.mark.gpu
def test_cuda_tells_its_peak(table: Path, tmp_path: Path) -> None:
    cpu = run_one(config(table, method="hash", ratio=3), tmp_path / "cpu")
    cuda = run_one(config(table, method="hash", ratio=3, device="cuda"), tmp_path / "cuda")
    assert cuda["status"] == "ok", cuda["error"]
    assert cuda["run_id"] == cpu["run_id"]
    assert cuda["bytes"]["peak_device"] > cuda["bytes"]["training"]
    auc = [record["metrics"]["test"]["auc"]["value"] for record in (cpu, cuda)]
    assert auc[0] == pytest.approx(auc[1], abs=0.02)
