"""Encoding into shards, when something goes wrong: clear errors, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featemb.benchmarks.speed import criteo_text
from featemb.datasets import Column, Recipe
from featemb.datasets.bulk import encode as encoding
from featemb.datasets.bulk.encode import encode_shards
from featemb.datasets.registry import find
from featemb.datasets.shard_index import Index
from featemb.datasets.tables import table
from featemb.datasets.textfile import TextFile
from featemb.errors import DataError

ROWS = 900


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("featemb.datasets.bulk.encode.PIECE_BYTES", 60_000)
    monkeypatch.setattr("featemb.datasets.bulk.encode.STRETCH_ROWS", 300)
    criteo_text.write(tmp_path / "train.txt", ROWS, cardinalities=[7, 3000] * 13)
    return tmp_path / "train.txt"


def encode(path: Path, workers: int = 1, **settings: Any) -> Index:
    source, recipe = find("criteo").prepare(path, min_count=2)
    return encode_shards(source, recipe, path.parent / "out", workers=workers, **settings)


def replace_line(path: Path, line: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = b"\t".join(change(lines[line - 1].split(b"\t")))
    path.write_bytes(b"\n".join(lines))


DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "columns": (lambda c: c[:-1], r"train\.txt, line 777: .*Expected 40 columns, got 39"),
    "number": (lambda c: [c[0], b"x", *c[2:]], r"train\.txt, line 777: .*invalid value 'x'"),
    "utf8": (lambda c: [*c[:-1], b"\xff\xfe"], r"train\.txt, line 777: .*invalid UTF8"),
    "label": (lambda c: [b"7", *c[1:]], r"train\.txt, lines \d+ to \d+: .* got 7 in row 776"),
    "no label": (lambda c: [b"", *c[1:]], r"train\.txt, lines .* missing, the first in row 776"),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_row_is_named(path: Path, damage: str, workers: int) -> None:
    change, message = DAMAGE[damage]
    replace_line(path, 777, change)
    with pytest.raises(DataError, match=message):
        encode(path, workers)
    assert not (path.parent / "out").exists()


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = pa.cpu_count()
    pa.set_cpu_count(2)
    yield
    pa.set_cpu_count(before)


@pytest.mark.usefixtures("_two_threads")
def test_lines_are_counted_with_header_and_blank_lines(tmp_path: Path) -> None:
    lines = ["", "a,b,click", "", *(f"{n},x,{n % 2}" for n in range(50)), "", "1,2"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    message = rf"t\.csv, line {len(lines)}: .*Expected 3 columns, got 2"
    with pytest.raises(DataError, match=message):
        list(table(tmp_path / "t.csv").pieces(100))
    whole = TextFile(tmp_path / "t.csv", ["a", "b", "click"], dict.fromkeys("ab", pa.string()))
    whole = replace(whole, types={**whole.types, "click": pa.string()})
    pieces = whole.pieces(100)
    assert pieces is not None
    assert len(pieces) > 2
    assert sum(piece.read().num_rows for piece in pieces[:-1]) > 30
    with pytest.raises(DataError, match=message):
        pieces[-1].read()


def test_a_corrupt_row_group_is_named(tmp_path: Path) -> None:
    rows = pa.table({"v": [str(n) for n in range(9000)], "click": [0, 1] * 4500})
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=3000, use_dictionary=False)
    place = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(1).column(0).data_page_offset
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[place : place + 40] = bytes(40)
    (tmp_path / "t.parquet").write_bytes(data)
    recipe = Recipe(label="click", columns=[Column(name="v")])
    with pytest.raises(DataError, match=r"t\.parquet, row group 1"):
        encode_shards(table(tmp_path / "t.parquet"), recipe, tmp_path / "out", workers=1)


class Stop(Exception):
    """Stands for a kill between two tasks."""


@pytest.mark.parametrize("step", ["parse", "count", "plan", "merge", "rank", "fill", "check"])
def test_an_encoding_goes_on_where_it_stopped(
    path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode(path).fingerprint
    (path.parent / "out").rename(path.parent / "expected")

    def stop(found: str, done: int, total: int | None) -> None:
        if found == step and done == 2:
            raise Stop

    with pytest.raises(Stop):
        encode(path, report=stop)
    calls: list[int] = []
    parse = encoding.parse

    def counted(work: Any, number: int, piece: Any) -> dict[str, Any]:
        calls.append(number)
        return parse(work, number, piece)

    monkeypatch.setattr(encoding, "parse", counted)
    assert encode(path).fingerprint == expected
    assert calls == ([2, 3] if step == "parse" else [])
    for file in (path.parent / "expected" / "shards").iterdir():
        assert file.read_bytes() == (path.parent / "out" / "shards" / file.name).read_bytes()


def test_damaged_work_is_done_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(found: str, done: int, total: int | None) -> None:
        if found == "count":
            raise Stop

    with pytest.raises(Stop):
        encode(path, report=stop)
    blocks = path.parent / "out.partial" / "blocks"
    block = sorted(blocks.glob("*.words"))[1]
    block.write_bytes(block.read_bytes()[:-1])
    calls: list[int] = []
    parse = encoding.parse
    monkeypatch.setattr(encoding, "parse", lambda *a: calls.append(a[1]) or parse(*a))
    encode(path)
    assert calls == [1]


def test_work_on_another_source_is_not_used(path: Path) -> None:
    def stop(found: str, done: int, total: int | None) -> None:
        if found == "merge":
            raise Stop

    with pytest.raises(Stop):
        encode(path, report=stop)
    criteo_text.write(path, ROWS, seed=1, cardinalities=[7, 3000] * 13)
    found = encode(path).fingerprint
    (path.parent / "out").rename(path.parent / "first")
    assert encode(path).fingerprint == found


def die(*arguments: Any) -> dict[str, Any]:
    os._exit(9)


def test_a_process_that_dies_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "count", die)
        with pytest.raises(DataError, match="a process that encodes has died"):
            encode(path, workers=2)
    encode(path, workers=2)


SCRIPT = """
import resource, sys
from pathlib import Path
from featemb.datasets.bulk import encode as encoding
from featemb.datasets.registry import find
encoding.PIECE_BYTES, encoding.STRETCH_ROWS = 60_000, 900
path, workers, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
source, recipe = find("criteo").prepare(path, min_count=2)
def report(step, done, total):
    print(step, done, flush=True)
try:
    encoding.encode_shards(source, recipe, path.parent / "out", workers=workers, report=report)
except encoding.DataError as error:
    sys.exit(f"DataError: {error}")
"""


def start(path: Path, workers: int, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), str(workers), str(limit)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=path.parent
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
@pytest.mark.parametrize(
    ("workers", "limit", "file"), [(1, 9_000, "blocks"), (2, 60_000, "shards")]
)
def test_a_full_disk_is_told_and_nothing_is_lost(
    path: Path, workers: int, limit: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "STRETCH_ROWS", 900)
    process = start(path, workers, limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert re.search(f"DataError: cannot write '.*/{file}/", errors)
    assert "File too large" in errors
    assert not (path.parent / "out").exists()
    done = len(list((path.parent / "out.partial" / "done").iterdir()))
    assert done > 4 or limit < 60_000
    encode(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_a_killed_encoding_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "STRETCH_ROWS", 900)
    process = start(path, workers=2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("count 2"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = path.parent / "out.partial" / "done"
    assert len(list(done.glob("parse-*.json"))) == 4
    assert json.loads((done / "parse-000001.json").read_text())["blocks"]
    times = {file: file.stat().st_mtime_ns for file in done.glob("parse-*.json")}
    seen: list[dict[Path, int]] = []

    def look(step: str, number: int, total: int | None) -> None:
        if step == "fill":
            seen.append({file: file.stat().st_mtime_ns for file in times})

    encode(path, report=look)
    assert seen[0] == times
