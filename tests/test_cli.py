"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featemb import config, models
from featemb.cli import main

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--epochs", "1", "--dim", "4", "--batch-size", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    frame = {
        "user": random.integers(0, 40, 400).astype(str),
        "item": random.integers(0, 20, 400).astype(str),
        "age": random.normal(size=400),
        "click": random.integers(0, 2, 400).astype("int8"),
    }
    path = tmp_path_factory.mktemp("table") / "mine.parquet"
    pd.DataFrame(frame).to_parquet(path)
    return path


def call(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    out = capsys.readouterr().out
    for verb in ("train", "bench", "methods", "models"):
        assert f"  {verb}" in out


def test_help_does_not_load_the_harness() -> None:
    code = (
        "import sys; from featemb.cli import build; build();"
        "print([m for m in sys.modules if m in ('pandas', 'pyarrow', 'sklearn', 'matplotlib')"
        " or m.startswith(('featemb.benchmarks', 'featemb.datasets', 'featemb.models'))])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import featemb

    assert call("--version") == 0
    assert featemb.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["methods", "models"])
def test_lists_come_from_the_registries(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--settings") == 0
    out = capsys.readouterr().out
    names = models.names() if verb == "models" else config.names("method") + config.names("codec")
    assert all(f" {name} " in out for name in names)


def test_train_on_an_own_table(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, out = tmp_path / "schema.json", tmp_path / "runs"
    flags = ["train", "--data", table, "--label", "click", "--out", out, *SMALL]
    flags += ["--method", "hash", "--ratio", "2", "--set", "hidden=[8]"]
    assert call(*flags, "--save-schema", schema) == 0
    shown = capsys.readouterr().out
    for word in ("AUC", "LogLoss", "serving", "ratio", "record is in"):
        assert word in shown
    (record,) = out.glob("*/run.json")
    assert json.loads(record.read_text())["config"]["model_config"]["hidden"] == [8]
    before = record.stat().st_mtime_ns
    assert call(*flags) == 0
    assert "already" in capsys.readouterr().out
    assert record.stat().st_mtime_ns == before
    assert json.loads(schema.read_text())


def test_saved_schema_is_reused_and_edits_count(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, out = tmp_path / "schema.json", tmp_path / "runs"
    flags = ["train", "--data", table, "--label", "click", "--out", out, *SMALL]
    assert call(*flags, "--save-schema", schema) == 0
    assert call(*flags, "--schema", schema) == 0
    text = schema.read_text()
    document = json.loads(text)
    for name, entries in document.items():  # leave the item out
        if isinstance(entries, list):
            document[name] = [
                e for e in entries if not (isinstance(e, dict) and e["name"] == "item")
            ]
    schema.write_text(json.dumps(document))
    assert call(*flags, "--schema", schema) == 0
    capsys.readouterr()
    sizes = [json.loads(path.read_text())["data"]["features"] for path in out.glob("*/run.json")]
    assert len(set(sizes)) == 2
    assert min(sizes) == max(sizes) - 1


def test_bench_by_flags(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["bench", "--data", table, "--label", "click", "--out", tmp_path / "runs", *SMALL]
    flags += ["--method", "hash", "--ratio", "2", "--rows", "200", "--set", "hidden=[8]"]
    assert call(*flags, "--dry-run") == 0
    assert "2 runs" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"
    assert call(*flags) == 0
    out = capsys.readouterr().out
    assert out.count("] start ") == out.count("] end ") == 2
    assert f"featemb report {tmp_path / 'runs'}" in out.replace("\n", " ")
    assert call(*flags, "--quiet") == 0
    assert "start" not in capsys.readouterr().out


def test_bench_reports_failures(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", "--data", table, "--label", "click", "--out", tmp_path / "runs", *SMALL]
    assert call(*flags, "--method", "hash", "--budget", "4B", "--set", "hidden=[8]") == 0
    told = capsys.readouterr()
    assert "BudgetError" in told.err
    assert "1 runs are in" in told.out
    flags += ["--optimizer", "row_sgd", "--lr", "1e30"]
    assert call(*flags, "--set", "hidden=[8]") == 1
    assert "the loss is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--data", "nycflights13_dem"], "nycflights13_demo"),
        (["train", "--data", "TABLE", "--label", "clicks"], "click"),
        (["train", "--data", "TABLE"], "label"),
        (["train", "--data", "TABLE", "--label", "click", "--model", "dcnv3"], "dcnv2"),
        (["train", "--data", "TABLE", "--label", "click", "--method", "hash(rws=3)"], "rows"),
        (["train", "--data", "TABLE", "--label", "click", "--ratio", "0"], "ratio"),
        (["train", "--data", "TABLE", "--label", "click", "--budget", "big"], "big"),
        (["train", "--data", "TABLE", "--label", "click", "--device", "tpu"], "tpu"),
        (["train", "--data", "TABLE", "--label", "click", "--set", "hidden"], "NAME=VALUE"),
        (["train", "--data", "TABLE", "--label", "click", "--set", "hidden=[1"], "TOML"),
        (["train", "--data", "TABLE", "--label", "click", "--schema", "nosuch.json"], "nosuch"),
        (["train", "--data", "nosuch.parquet", "--label", "click"], "nosuch.parquet"),
        (["bench"], "--data"),
        (["bench", "nosuch.toml"], "nosuch.toml"),
        (["bench", "--data", "nosuch"], "nosuch"),
        (["bench", "--data", "nosuch.parquet", "--dry-run"], "nosuch.parquet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    told: str,
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*(str(table) if one == "TABLE" else one for one in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
    assert not list(tmp_path.glob("**/run.json"))


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["bench", "--jobs", "0"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert "Error" in capsys.readouterr().err
