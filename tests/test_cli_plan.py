"""``featemb plan``: schemas from everywhere, tables in the terminal and in files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import featemb as fe
from featemb import cli
from featemb.benchmarks import planning
from featemb.cli.plan import read_cardinalities

ROOT = Path(__file__).resolve().parent.parent
RUNS = str(ROOT / "docs" / "results" / "ml1m_methods")
TABLE = str(ROOT / "docs" / "results" / "table")
SCHEMA = fe.Schema([fe.Feature("user", 100_000), fe.Feature("hour", 24)])
METHODS = [word for name in ("hash", "lowdim", "full") for word in ("--method", name)]


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", *arguments])
    assert not end.value.code


def test_cardinalities_are_read() -> None:
    schema = read_cardinalities("user=1e9, hour=24,7_000")
    assert schema.names == ("user", "hour", "f2")
    assert schema.cardinalities == (10**9, 24, 7000)


@pytest.mark.parametrize("text", ["", "a", "user=", "0", "-3", "2.5", "user=1e9,,3", "nan", "inf"])
def test_wrong_cardinalities_are_refused(text: str) -> None:
    with pytest.raises(fe.SchemaError, match="is not a number of ids >= 1"):
        read_cardinalities(text)


def test_every_form_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA.to_json())
    outs = [tmp_path / f"plan{ending}" for ending in (".json", ".csv", ".html")]
    flags = [word for path in outs for word in ("--out", str(path))]
    run(
        "--schema",
        str(tmp_path / "schema.json"),
        "--dim",
        "32",
        "--budget",
        "1MB",
        *METHODS,
        *flags,
    )
    shown = capsys.readouterr().out
    frame = fe.plan(SCHEMA, dim=32, budget="1MB", specs=["hash", "lowdim", "full"])
    document = json.loads(outs[0].read_text())
    assert "100,024 ids of 32 numbers, 12.8 MB; within 1 MB" in document["plan"]
    rows = {row["method"]: row for row in document["rows"]}
    csv = pd.read_csv(outs[1]).set_index("method")
    page = outs[2].read_text()
    for row in frame.itertuples():
        assert rows[row.method]["fits"] == row.fits
        if row.fits:
            assert rows[row.method]["serving_bytes"] == row.serving_bytes
            assert rows[row.method]["serving_parts"] == row.serving_parts
            assert int(csv.serving_bytes[row.method]) == row.serving_bytes
            assert row.spec in re.sub(r"\s", "", shown)
            assert f"{int(row.serving_bytes):,}" in page
        else:
            assert rows[row.method]["floor_bytes"] == row.floor_bytes
    assert "full: needs at least 12.8 MB" in shown
    assert "http" not in page.split("<script>")[0]


def test_a_table_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"user": [f"u{i % 50}" for i in range(400)], "click": [0, 1] * 200})
    table.to_parquet(tmp_path / "clicks.parquet")
    run("--data", str(tmp_path / "clicks.parquet"), "--label", "click", "--ratio", "2", *METHODS)
    assert "1 features, 51 ids of 16 numbers" in capsys.readouterr().out


def test_plans_are_ranked_by_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    flags = ["--runs", RUNS, "--evidence-model", "dcnv2", "--out", str(out)]
    run("--cardinalities", "1e8,1e6", "--ratio", "10", *METHODS, *flags)
    shown = capsys.readouterr().out
    assert "measured: ml1m/dcnv2: 3 seeds" in re.sub(r"\s+", " ", shown)
    rows = json.loads(out.read_text())["rows"]
    # rows of one number are 16 times smaller: further than was measured, and behind for that
    assert [row["method"] for row in rows if row["fits"]] == ["hash", "lowdim"]
    assert rows[0]["auc_loss"] == pytest.approx(0.8983 - 0.7865, abs=1e-3)
    assert rows[1]["basis"] == "extrapolated"
    assert rows[2]["auc_loss"] is None


def test_evidence_of_several_places_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    run("--cardinalities", "1e8,1e6", "--ratio", "10", "--method", "hash", "--runs", TABLE)
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "measured: weakest of 4" in shown
    assert "--out writes what each says" in shown


def test_huge_tables_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    run("--cardinalities", "1e9", "--dim", "64", "--ratio", "100", *METHODS)
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "256 GB; 100x smaller" in shown
    assert "2.56 GB" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --data, --schema and --cardinalities"),
        (["--cardinalities", "5", "--data", "ml1m"], "give one of"),
        (["--cardinalities", "5", "--out", "plan.txt"], "cannot write a plan to 'plan.txt'"),
        (["--cardinalities", "5", "--method", "hsh"], "did you mean 'hash'"),
        (["--schema", "/nowhere.json"], "cannot read the schema"),
        (["--cardinalities", "5", "--runs", "/nowhere"], "there is no folder"),
    ],
)
def test_wrong_questions(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "--method", "hash", *arguments])
    assert end.value.code == cli.USAGE_ERROR
    assert message in capsys.readouterr().err


def test_bytes_in_words() -> None:
    words = [planning._bytes(size) for size in (7, 1500, 2_000_000, 157_896_000, 3.21e12)]
    assert words == ["7 B", "1.5 kB", "2 MB", "158 MB", "3,210 GB"]
