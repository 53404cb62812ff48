"""Run folders and the report made of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import config, fail, make

from featemb.benchmarks import records
from featemb.benchmarks.report import aggregate, write_report
from featemb.errors import RunError


def test_run_ids_depend_on_everything_and_are_safe_names() -> None:
    one = records.run_id(config(method="unified(lookups=2, per_feature={a/b: 3})"))
    assert re.fullmatch(r"[A-Za-z0-9._-]+", one)
    assert one == records.run_id(
        dict(reversed(config(method="unified(lookups=2, per_feature={a/b: 3})").items()))
    )
    ids = {records.run_id(config(**c)) for c in ({}, {"seed": 1}, {"dim": 9}, {"ratio": 2.0})}
    assert len(ids) == 4


def test_a_run_reads_back_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    name = make(tmp_path)
    first = (tmp_path / name / "run.json").read_text()
    assert records.status(tmp_path, name) == "ok"
    assert make(tmp_path, noise=3.0) == name
    assert (tmp_path / name / "run.json").read_text() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_run_can_be_replaced(tmp_path: Path) -> None:
    fail(tmp_path, "too small")
    name = records.run_id(config())
    assert records.status(tmp_path, name) == "failed"
    make(tmp_path)
    assert records.status(tmp_path, name) == "ok"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "status": "ok"}'])
def test_broken_records_are_told_and_do_not_stop_the_others(tmp_path: Path, text: str) -> None:
    good = make(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(text)
    with pytest.raises(RunError, match="bad"):
        records.read(tmp_path / "bad")
    runs = records.read_all(tmp_path)
    assert list(runs.records) == [good]
    assert list(runs.unreadable) == ["bad"]
    assert "bad" in (write_report(tmp_path, tmp_path / "out")[0]).read_text()


HOLDER = """
import sys, time
from pathlib import Path
from featemb.benchmarks import records

with records.lock(sys.argv[1], "run") as held:
    (Path(sys.argv[1]) / ".tmp-run-half").mkdir()
    print(held, flush=True)
    time.sleep(120)
"""


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "True"
        with records.lock(tmp_path, "run") as held:
            assert not held
        with records.lock(tmp_path, "another") as held:
            assert held
        other.kill()
        other.wait()
        with records.lock(tmp_path, "run") as held:
            assert held
            assert not list(tmp_path.glob(".tmp-*")), "what a killed process left is removed"


def test_rows_bring_seeds_together_and_compare_with_full(tmp_path: Path) -> None:
    for seed in range(3):
        make(tmp_path, seed=seed)
        make(tmp_path, noise=2.5, serving=100, method="hash", ratio=10.0, seed=seed)
        make(tmp_path, noise=0.0, serving=500, method="unified", ratio=2.0, seed=seed)
    rows = {
        row.method: row for row in aggregate(tmp_path, records.read_all(tmp_path).records.values())
    }
    assert rows["full"].is_full
    assert rows["full"].verdict == "reference"
    assert rows["hash"].seeds == 3
    assert rows["hash"].asked == "10x"
    assert rows["hash"].verdict == "worse"
    assert rows["unified"].verdict == "no difference shown"
    hash_row = rows["hash"]
    assert hash_row.difference is not None
    assert hash_row.p is not None
    assert hash_row.difference.value == pytest.approx(hash_row.auc.value - rows["full"].auc.value)
    assert hash_row.p >= hash_row.difference.p


def test_the_page_is_one_offline_file(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, serving=10, noise=1.0, method="hash", ratio=100.0)
    fail(tmp_path, "<script>alert(1)</script> needs 7 bytes", method="hash", ratio=1e6)
    html, png = write_report(tmp_path, tmp_path / "out", title="A <b>title</b>")
    text = html.read_text()
    assert png.name == "toy-dcnv2.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text)
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "A &lt;b&gt;title" in text
    found = re.search(r'<script id="payload" type="application/json">(.*?)</script>', text, re.S)
    assert found is not None
    payload = json.loads(found.group(1))
    assert {row["label"] for row in payload["rows"]} == {"full", "hash"}
    assert {run["facts"]["config"]["method"] for run in payload["runs"].values()} == {
        "full",
        "hash",
    }


def test_a_report_needs_no_full_table(tmp_path: Path) -> None:
    make(tmp_path, method="hash", ratio=10.0, serving=100)
    assert len(write_report(tmp_path)) == 2
    with pytest.raises(RunError, match="no folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run"):
        write_report(tmp_path / "empty")
