"""The cache of encoded data: reused, made anew when it is corrupt, safe among processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featemb.datasets import Dataset, load
from featemb.datasets.cache import read
from featemb.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = [f"v{n % 17}" for n in range(400)]
    table = pa.table({"v": values, "w": values[::-1], "click": [0, 1, 1, 0] * 100})
    pq.write_table(table, tmp_path / "my.parquet")
    return tmp_path / "my.parquet"


def encode(path: Path) -> tuple[Dataset, Path]:
    data = load(path, label="click", cache=path.parent / "cache")
    (folder,) = (path.parent / "cache").iterdir()
    return data, folder


def test_second_load_reads_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = encode(path)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(before) == {
        *("meta.json", "counts.npz", "vocabulary.arrow"),
        *("train.parquet", "valid.parquet", "test.parquet"),
    }
    monkeypatch.setattr("featemb.datasets.cache.encode", None)
    again, _ = encode(path)
    assert again.fingerprint == data.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    schema = json.loads((folder / "meta.json").read_text())["schema"]
    assert "counts" not in json.dumps(schema)


def test_changed_source_or_recipe_is_encoded_anew(path: Path) -> None:
    first, _ = encode(path)
    cache = path.parent / "cache"
    other = load(path, label="click", cache=cache, min_count=30)
    assert other.fingerprint != first.fingerprint
    table = pq.read_table(path)
    values = pa.array(["new", *table.column("v").to_pylist()[1:]])
    pq.write_table(table.set_column(0, "v", values), path)
    changed = load(path, label="click", cache=cache)
    assert changed.fingerprint != first.fingerprint
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("name", ["train.parquet", "counts.npz", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_corrupt_cache_is_made_anew(path: Path, name: str, damage: str) -> None:
    data, folder = encode(path)
    whole = (folder / name).read_bytes()
    if damage == "gone":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(whole[: len(whole) // 2])
    else:
        middle = len(whole) // 2
        (folder / name).write_bytes(whole[:middle] + b"\x00\xff" + whole[middle + 2 :])
    again, same = encode(path)
    assert same == folder
    assert again.fingerprint == data.fingerprint
    assert (again.splits["train"].ids == data.splits["train"].ids).all()


def test_changed_facts_are_noticed(path: Path) -> None:
    data, folder = encode(path)
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"cardinality": 18', '"cardinality": 19'))
    again, _ = encode(path)
    assert again.schema == data.schema


def test_reading_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no encoded data"):
        read("x", tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="has format 99"):
        read("x", tmp_path)


def test_nothing_is_left_of_a_failure(path: Path) -> None:
    with pytest.raises(DataError):
        load(path, label="v", cache=path.parent / "cache")
    assert not list((path.parent / "cache").iterdir())


def test_processes_that_encode_the_same_data(path: Path) -> None:
    code = (
        "import sys, time\n"
        "from featemb.datasets import load\n"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()))\n"
        "print(load(sys.argv[1], label='click').fingerprint)\n"
    )
    start = str(time.time() + 4)
    cache = path.parent / "cache"
    env = {**os.environ, "FEATEMB_CACHE": str(cache)}
    command = [sys.executable, "-c", code, str(path), start]
    running = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert all(process.returncode == 0 for process in running), outputs
    assert len({out for out, _ in outputs}) == 1
    (folder,) = cache.iterdir()
    assert read("my", folder).fingerprint == outputs[0][0].strip()
