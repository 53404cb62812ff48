"""Encoding into shards: the values of encoding in memory, whatever the pieces and processes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from featemb.benchmarks import sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.speed import criteo_text
from featemb.cli import main
from featemb.datasets import Column, Dataset, Hashing, Recipe, SplitRule, encode, load
from featemb.datasets.bulk.encode import encode_shards
from featemb.datasets.bulk.limits import limits
from featemb.datasets.cache import encoded
from featemb.datasets.recipe import PARTS
from featemb.datasets.registry import find
from featemb.datasets.shard_index import Index, read_index, verify
from featemb.datasets.source import Source
from featemb.datasets.tables import table, tables
from featemb.errors import DataError

ROWS = 1500


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces, several shards a split, and merges of a few words at a time."""
    monkeypatch.setattr("featemb.datasets.bulk.encode.PIECE_BYTES", 60_000)
    monkeypatch.setattr("featemb.datasets.bulk.encode.STRETCH_ROWS", 400)
    monkeypatch.setattr("featemb.datasets.bulk.encode.BATCH_ROWS", 301)
    monkeypatch.setattr("featemb.datasets.source.BATCH_ROWS", 301)
    monkeypatch.setattr("featemb.datasets.bulk.limits.Limits.words", lambda *_: 500)
    monkeypatch.setattr("featemb.datasets.bulk.rank.CHUNK", 137)


def criteo(folder: Path, rows: int = ROWS) -> Path:
    criteo_text.write(folder / "train.txt", rows, cardinalities=[7, 400, 100_000] * 8 + [2, 3])
    return folder / "train.txt"


def assert_same(index: Index, data: Dataset) -> None:
    """Everything that the shards hold equals what was encoded in memory."""
    verify(index)
    assert index.schema == data.schema.without_counts()
    counts = index.counts()
    for feature in data.schema.features:
        if feature.counts is not None:
            assert counts[feature.name].tolist() == feature.counts.tolist()
    for part in PARTS:
        split = data.splits[part]
        found: dict[str, Any] = {}
        for kind in index.splits[part][0].files:
            found[kind] = np.concatenate([shard.open(kind) for shard in index.splits[part]])
        assert split.ids is not None
        np.testing.assert_array_equal(found["ids"], split.ids.numpy())
        np.testing.assert_array_equal(found["label"], split.label.numpy())
        assert ("user" in found) == (split.user is not None)
        if split.user is not None:
            np.testing.assert_array_equal(found["user"], split.user.numpy())
        if split.numeric is not None:
            np.testing.assert_array_equal(found["numeric"], split.numeric.numpy())
        for shard in index.splits[part]:
            assert shard.ones == shard.open("label").sum()
    assert index.fingerprint == data.fingerprint
    assert data.encoding is not None
    for name, values in data.encoding.values.items():
        assert index.encoding().values[name].to_pylist() == values.to_pylist()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("chronological", [False, True])
def test_criteo_equals_encoding_in_memory(
    tmp_path: Path, workers: int, chronological: bool
) -> None:
    path = criteo(tmp_path)
    source, recipe = find("criteo").prepare(path, min_count=2, chronological=chronological)
    index = encode_shards(source, recipe, tmp_path / "out", workers=workers)
    assert len(index.splits["train"]) > 1
    data = load("criteo", root=path, min_count=2, chronological=chronological)
    assert_same(index, data)
    assert sum(data.schema.cardinalities) > 1000
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.usefixtures("small")
def test_compressed_text_is_streamed(tmp_path: Path) -> None:
    path = criteo(tmp_path)
    packed = tmp_path / "train.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    indexes = []
    for file in (path, packed):
        source, recipe = find("criteo").prepare(file, min_count=2, integers="both")
        indexes.append(encode_shards(source, recipe, tmp_path / file.suffix[1:], workers=2))
    assert indexes[0].fingerprint == indexes[1].fingerprint


@pytest.mark.usefixtures("small")
def test_avazu_and_kdd12(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    fields = [f"C{n}" for n in range(14, 22)]
    columns = ["id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain"]
    columns += ["site_category", "app_id", "app_domain", "app_category", "device_id", "device_ip"]
    columns += ["device_model", "device_type", "device_conn_type", *fields]
    frame = pd.DataFrame({name: random.zipf(1.3, ROWS) % 99 for name in columns})
    frame["click"] = random.integers(0, 2, ROWS)
    frame["hour"] = random.choice([14102100, 14102123, 14102505], ROWS)
    frame.to_csv(tmp_path / "train.csv", index=False)
    kdd = pd.DataFrame(random.zipf(1.2, (ROWS, 12)) % 5000)
    kdd[0] = random.integers(0, 3, ROWS)
    kdd.to_csv(tmp_path / "training.txt", index=False, header=False, sep="\t")
    for name in ("avazu", "kdd12"):
        source, recipe = find(name).prepare(tmp_path)
        index = encode_shards(source, recipe, tmp_path / name, workers=1)
        assert_same(index, load(name, root=tmp_path))


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(3)
    user = (random.zipf(1.3, ROWS) % 200).astype(object)
    user[random.random(ROWS) < 0.05] = None
    city = np.array(["a", "b", "é", "", "zz\U0001f600"])[random.integers(0, 5, ROWS)]
    price = random.normal(1e6, 3, ROWS)
    price[random.random(ROWS) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "user": pd.array(user, "Int64"),
            "city": city.astype(object),
            "price": price,
            "score": np.round(random.normal(size=ROWS), 1),
            "flag": random.random(ROWS) < 0.5,
            "when": random.integers(0, 500, ROWS),
            "click": (random.random(ROWS) < 0.4).astype("int8"),
        }
    )


def own(**settings: Any) -> Recipe:
    columns = [Column(name=name) for name in ("user", "score", "flag")]
    columns += [Column(name="city", min_count=1)]
    columns += [Column(name="price", kind="numeric", transform="none")]
    return Recipe(**{"label": "click", "columns": columns, "min_count": 5, **settings})


RULES = [
    SplitRule(seed=3),
    SplitRule(rule="time", column="when"),
    SplitRule(rule="column", column="city", values={"train": "a", "test": "b"}),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_own_table(tmp_path: Path, frame: pd.DataFrame, ending: str, rule: SplitRule) -> None:
    path = tmp_path / f"t.{ending}"
    if rule.rule == "column":
        frame = frame[frame.city.isin(["a", "b"])]
    if ending == "parquet":
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(rows, path, row_group_size=411)
    else:
        frame.to_csv(path, index=False)
    recipe = own(user="user", split=rule)
    index = encode_shards(table(path), recipe, tmp_path / "out", workers=1)
    assert_same(index, load(path, recipe=recipe))


@pytest.mark.usefixtures("small")
def test_dictionaries_with_unused_and_repeated_values(tmp_path: Path) -> None:
    words = pa.array(["b", "", "a", None, "unused"])
    codes = pa.array(np.random.default_rng(0).integers(0, 4, 600).astype(np.int8))
    column = pa.DictionaryArray.from_arrays(codes, words)
    batch = pa.record_batch({"v": column, "click": pa.array([0, 1, 1] * 200)})
    recipe = Recipe(label="click", columns=[Column(name="v")])
    source = Source([], lambda: iter([batch.slice(0, 250), batch.slice(250)]))
    index = encode_shards(source, recipe, tmp_path / "out", workers=1)
    assert_same(index, encoded("v", source, recipe, tmp_path / "cache", {}))
    assert index.schema.cardinalities == (3,)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [None, 1000])
def test_hashed_ids_equal_the_encoding_of_raw_rows(tmp_path: Path, size: int | None) -> None:
    path = criteo(tmp_path)
    source, recipe = find("criteo").prepare(path, chronological=True)
    recipe = Recipe(**{**vars(recipe), "hashing": Hashing(size=size, seed=5)})
    index = encode_shards(source, recipe, tmp_path / "out", workers=2)
    assert [feature.cardinality for feature in index.schema.features] == [size] * 26
    assert index.counts() == {}
    shards = index.splits["test"]
    ids = np.concatenate([shard.open("ids") for shard in shards])
    assert ids.dtype == (np.int32 if size else np.int64)
    assert ids.max() > 2**62 or size
    rows = pa.Table.from_batches(source.batches())
    raw = index.encoding()(rows.slice(rows.num_rows - len(ids)))
    assert isinstance(raw.ids, torch.Tensor)
    np.testing.assert_array_equal(ids, raw.ids.numpy())
    again = encoded("criteo", source, recipe, tmp_path / "cache", {})
    assert again.fingerprint == index.fingerprint
    assert torch.equal(torch.as_tensor(ids).long(), again.splits["test"].ids.long())  # type: ignore[union-attr]


def test_processes_fit_into_the_memory() -> None:
    assert limits(64, 4 << 30).workers <= 6
    assert limits(2, 4 << 30).workers == 2
    assert limits(8, 1 << 30).workers == 1
    with pytest.raises(DataError, match="workers must be at least 1, got 0"):
        limits(0, 4 << 30)
    with pytest.raises(DataError, match="memory must be at least"):
        limits(1, 1 << 20)


def test_what_is_there_stays(tmp_path: Path) -> None:
    source, recipe = find("criteo").prepare(criteo(tmp_path))
    (tmp_path / "out").mkdir()
    first = encode_shards(source, recipe, tmp_path / "out", workers=1)
    when = (tmp_path / "out" / "index.json").stat().st_mtime_ns
    assert encode_shards(source, recipe, tmp_path / "out").fingerprint == first.fingerprint
    assert (tmp_path / "out" / "index.json").stat().st_mtime_ns == when
    other = Recipe(**{**vars(recipe), "min_count": 3})
    with pytest.raises(DataError, match="holds something else"):
        encode_shards(source, other, tmp_path / "out")


def test_damage_is_refused(tmp_path: Path) -> None:
    source, recipe = find("criteo").prepare(criteo(tmp_path))
    index = encode_shards(source, recipe, tmp_path / "out", workers=1)
    path = index.splits["valid"][0].path("ids")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"valid-00000\.ids\.npy does not match its checksum"):
        verify(read_index(tmp_path / "out"))
    path.write_bytes(data[:-4])
    with pytest.raises(DataError, match=r"valid-00000\.ids\.npy has \d+ bytes, not \d+"):
        read_index(tmp_path / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"valid-00000\.ids\.npy has None bytes"):
        read_index(tmp_path / "out")
    file = tmp_path / "out" / "index.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"fingerprint": "0"}))
    with pytest.raises(DataError, match=r"index\.json does not match its checksum"):
        read_index(tmp_path / "out")
    with pytest.raises(DataError, match="holds no encoded shards"):
        read_index(tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_several_files_are_one_table(tmp_path: Path, frame: pd.DataFrame, ending: str) -> None:
    frame["price"] = frame.price.fillna(0.0)
    halves = [frame.iloc[:700], frame.iloc[700:]]
    paths = [tmp_path / f"day{n}.{ending}" for n in (0, 1)]
    whole = tmp_path / f"whole.{ending}"
    for part, path in zip([*halves, frame], [*paths, whole], strict=True):
        if ending == "parquet":
            part.to_parquet(path, index=False)
        else:
            part.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    index = encode(paths, tmp_path / "out", recipe=own(), workers=2, memory="2GB")
    assert index.fingerprint == load(whole, recipe=own()).fingerprint
    assert index.meta["source"] == [path.name for path in paths]


def test_files_that_make_no_table_are_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet is parquet, a\.csv is csv"):
        tables([tmp_path / "a.csv", tmp_path / "b.parquet"])
    with pytest.raises(DataError, match="given twice"):
        tables([tmp_path / "a.csv", tmp_path / "a.csv"])
    with pytest.raises(DataError, match="at least one file"):
        tables([])
    with pytest.raises(DataError, match="there is no file"):
        tables([tmp_path / "a.csv", tmp_path / "c.csv"])
    frame.assign(user="text").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(DataError, match=r"c\.csv, line 2: .*'text'"):
        encode([tmp_path / "a.csv", tmp_path / "c.csv"], tmp_path / "out", recipe=own())


def test_several_values_in_a_cell_are_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.assign(city="a|" + frame.city).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"columns \['city'\] are multi-valued"):
        encode(tmp_path / "t.parquet", tmp_path / "out", label="click")
    assert not list(tmp_path.glob("out*"))


def test_names_and_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'criteo'"):
        encode("critio", tmp_path / "out")
    with pytest.raises(DataError, match="has its own protocol"):
        encode("criteo", tmp_path / "out", label="label")
    with pytest.raises(DataError, match="unknown option 'mincount'"):
        encode("criteo", tmp_path / "out", mincount=3)
    with pytest.raises(DataError, match="made by a function"):
        encode("synthetic", tmp_path / "out")
    with pytest.raises(DataError, match=r"found none of train\.txt"):
        encode("criteo", tmp_path / "out", root=tmp_path)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = criteo(tmp_path), tmp_path / "out"
    settings = ["--root", path, "--workers", "1", "--set", "min_count=2"]
    assert call("data", "encode", "criteo", "--out", out, *settings) == 0
    shown = capsys.readouterr().out
    assert "train 1,200 in 1, valid 150 in 1, test 150 in 1" in shown
    assert read_index(out).fingerprint[:16] in shown
    assert call("data", "check", out) == 0
    assert "match their checksums" in capsys.readouterr().out
    file = next(out.glob("shards/train-*.ids.npy"))
    file.write_bytes(file.read_bytes()[:-2] + b"xx")
    assert call("data", "check", out) == 2
    assert "train-00000.ids.npy does not match its checksum" in capsys.readouterr().err
    assert call("data", "encode", "criteo", "--out", tmp_path / "h", *settings, "--hash") == 0
    assert "hashed to 63 bits" in capsys.readouterr().out
    assert call("data", "encode", "criteo", "--out", tmp_path / "i", "--hash-size", "9") == 2
    assert "need --hash" in capsys.readouterr().err


def test_only_needed_columns_of_parquet_are_read(tmp_path: Path, frame: pd.DataFrame) -> None:
    frame.assign(unused=1, price=1.0).to_parquet(tmp_path / "t.parquet", index=False)
    source, recipe = table(tmp_path / "t.parquet"), own(user="user")
    (piece,) = source.pieces(1 << 20, recipe.needed)
    names = {"user", "city", "score", "flag", "price", "click"}
    assert set(next(piece.batches()).schema.names) == names
    (piece,) = source.pieces(1 << 20)
    assert set(next(piece.batches()).schema.names) == {*names, "unused", "when"}
    other = Recipe(label="click", columns=[*recipe.columns, Column(name="cities")])
    with pytest.raises(DataError, match="no column 'cities'; did you mean 'city'"):
        encode_shards(source, other, tmp_path / "out", workers=1)


def test_hashed_data_in_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("bounded", 1000), ("unbounded", None)):
        encode("nycflights13_demo", tmp_path / name, hashing=Hashing(size=size), workers=1)
    with pytest.raises(DataError, match="hashed without a bound"):
        sources.load(RunConfig(data=str(tmp_path / "unbounded")))
    data = sources.load(RunConfig(data=str(tmp_path / "bounded")))
    part = sources.subsample(data, 500, seed=0)
    assert len(part.splits["train"]) == 500
    assert part.schema.features[0].counts is None
    assert call("data", "show", tmp_path / "unbounded") == 0
    assert "unbounded" in capsys.readouterr().out
