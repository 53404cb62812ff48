"""``featemb data``: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featemb import datasets
from featemb.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = [f"v{n % 17}" for n in range(400)]
    table = pa.table({"site": values, "n": [n / 7 for n in range(400)], "click": [0, 1] * 200})
    pq.write_table(table, tmp_path / "my.parquet")
    return tmp_path / "my.parquet"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_list_names_all_sets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert call("data", "list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in datasets.names())
    assert "not clicks" in out
    assert "CC0" in out


def test_infer_prepare_show(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = tmp_path / "recipe.json"
    assert call("data", "infer", path, "--label", "click", "--out", recipe) == 0
    assert "17 values of type string" in capsys.readouterr().out
    assert [c["name"] for c in json.loads(recipe.read_text())["columns"]] == ["site", "n"]
    cache = tmp_path / "cache"
    assert call("data", "prepare", path, "--schema", recipe, "--cache", cache) == 0
    assert "train 320, valid 40, test 40" in capsys.readouterr().out
    assert len(list(cache.iterdir())) == 1
    assert call("data", "show", path, "--label", "click", "--cache", cache) == 0
    out = capsys.readouterr().out
    assert "18" in out
    assert "0.5" in out
    assert "numeric columns: n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "ml1n"], "did you mean 'ml1m'"),
        (["infer", "FILE", "--label", "clik"], "did you mean 'click'"),
        (["infer", "FILE", "--label", "click", "--separator", "site"], "COLUMN=TEXT"),
        (["show", "FILE"], "give the label's column"),
    ],
)
def test_errors_are_one_line(
    path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(path) if argument == "FILE" else argument for argument in arguments]
    assert call("data", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
