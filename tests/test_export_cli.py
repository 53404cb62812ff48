"""Runs to files from the command line, and the published matrix of methods and targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import featemb as fe
from featemb.benchmarks import export_matrix, export_tables
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.run import run_one
from featemb.cli import main
from featemb.export import TARGETS

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "results" / "export" / "matrix.json"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user": random.integers(0, 300, 900),
            "city": random.choice(["Bern", "Zürich", ""], 900),
            "age": np.where(random.random(900) < 0.1, np.nan, random.normal(size=900) * 9),
            "click": random.integers(0, 2, 900).astype("int8"),
        }
    )


@pytest.fixture(scope="module")
def run(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its model."""
    folder = tmp_path_factory.mktemp("runs")
    frame.to_parquet(folder / "clicks.parquet")
    config = RunConfig(
        data=str(folder / "clicks.parquet"),
        data_options={"label": "click"},
        model="deepfm",
        method="unified(lookups=2)+int8",
        ratio=2,
        model_config={"hidden": [8], "dropout": 0.0},
        dim=8,
        epochs=1,
        threads=1,
    )
    record = run_one(config, folder, save_model=True)
    assert record["status"] == "ok", record["error"]
    return folder / record["run_id"]


def test_a_run_becomes_files(
    run: Path, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", run, "--to", "safetensors", "--to", "pt2") == 0
    told = capsys.readouterr().out
    assert "compared with the frozen original on 90 test rows, within 1e-05" in told
    assert "inputs: tokens, numbers (raw rows, as tokens); output: logits" in told
    for name in ("served.safetensors", "served.pt2"):
        assert call("export", "--check", run / name) == 0
        assert f"{name}: good." in capsys.readouterr().out
    scores = pd.read_parquet(run / "predictions.parquet")
    last = fe.load(run / "served.pt2").raw(frame)
    assert fe.load(run / "served.safetensors").manifest["about"]["run"] == run.name
    split = fe.datasets.load(str(run.parent / "clicks.parquet"), label="click").splits["test"]
    assert len(split) == len(scores)
    probability = last.sigmoid().numpy()
    assert np.isin(np.round(scores["score"], 4), np.round(probability, 4)).all()


def test_ids_may_stay_outside(run: Path, tmp_path: Path) -> None:
    assert call("export", run, "--to", "pt2", "--ids", "--out", tmp_path / "file") == 0
    assert fe.load(tmp_path / "file").inputs == ["ids", "numeric"]


def test_damage_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = bytearray((run / "model.safetensors").read_bytes())
    whole[-20] ^= 1
    (tmp_path / "file").write_bytes(whole)
    assert call("export", "--check", tmp_path / "file") == 2
    assert "is corrupt: its checksum does not match" in capsys.readouterr().err
    assert call("export", tmp_path / "file") == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_wrong_use_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ((), "give the folder of a run"),
        ((run, "--to", "onx"), "unknown target 'onx'; did you mean 'onnx'"),
        ((run, "--check", run / "model.safetensors"), "--check FILE stands alone"),
        ((run, "--to", "pt2", "--to", "onnx", "--out", tmp_path / "f"), "--out names one file"),
        ((tmp_path / "none",), "is neither a run's folder nor a model's file"),
        ((run.parent,), "is not a readable record"),
    ):
        assert call("export", *arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes((run / "run.json").read_bytes())
    assert call("export", tmp_path / "run") == 2
    assert "kept no model: train it with --save-model" in capsys.readouterr().err


def test_the_matrix_has_every_method_and_target() -> None:
    found = export_matrix.read(RECORD)["cells"]
    wanted = {
        f"{group}/{name}/{form}/{target}"
        for group, name, form in export_matrix.cells()
        for target in TARGETS
    }
    assert sorted(wanted - set(found)) == []


def test_the_page_shows_the_record() -> None:
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    assert export_tables.block(page) == export_tables.tables(export_matrix.read(RECORD))


@pytest.mark.parametrize("name", fe.methods())
@pytest.mark.parametrize("target", ["safetensors", "torchrec"])
def test_the_matrix_is_so(name: str, target: str) -> None:
    """The quick targets, all over again; for the others see `export_matrix`."""
    told = export_matrix.read(RECORD)["cells"][f"method/{name}/bags/{target}"]
    found = export_matrix.attempt("method", name, "bags", target)
    assert found["ok"] == told["ok"]
    assert found.get("reason") == told.get("reason")


def test_a_graph_of_many_parts() -> None:
    assert export_matrix.attempt("method", "qr", "bags", "onnx")["ok"]
