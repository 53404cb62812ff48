"""Data in shards on disk: the batches of data in memory, from any batch on; broken shards."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_harness_checkpoint import TRAIN, equal

import featemb as fe
from featemb import models
from featemb.benchmarks import records
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.run import run_id, run_one
from featemb.cli import main
from featemb.datasets import Column, Dataset, Recipe, ShardedSplit, SplitRule, load, open_shards
from featemb.datasets.bulk.encode import encode_shards
from featemb.datasets.order import BlockOrder
from featemb.datasets.stream import ahead
from featemb.datasets.tables import table
from featemb.errors import DataError

ROWS = 3000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    user, item = random.integers(0, 60, ROWS), random.integers(0, 30, ROWS)
    price = random.permutation(ROWS) / 1000 - 1.5
    logit = random.normal(size=60)[user] + random.normal(size=30)[item] + price
    frame = {
        "user": user.astype(str),
        "item": item.astype(str),
        "price": price,
        "click": (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype("int8"),
    }
    path = tmp_path_factory.mktemp("table") / "clicks.parquet"
    pd.DataFrame(frame).to_parquet(path)
    return path


RECIPE = Recipe(
    label="click",
    columns=[
        Column(name="user"),
        Column(name="item"),
        Column(name="price", kind="numeric", transform="none"),
    ],
    split=SplitRule(rule="order"),
    user="user",
)


@pytest.fixture(scope="module")
def folder(file: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featemb.datasets.bulk.encode.STRETCH_ROWS", 700)
        patch.setattr("featemb.datasets.bulk.encode.BATCH_ROWS", 100)
        patch.setattr("featemb.datasets.source.BATCH_ROWS", 100)
        encode_shards(table(file), RECIPE, file.parent / "shards", workers=1)
    return file.parent / "shards"


@pytest.fixture(scope="module")
def memory(file: Path) -> Dataset:
    return load(file, recipe=RECIPE, cache=file.parent / "cache")


def copied(folder: Path, place: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = place / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return place


def rows(batches: Any) -> list[torch.Tensor]:
    ids, numeric, label = zip(*batches, strict=True)
    return [torch.cat(ids), torch.cat(numeric), torch.cat(label)]


def same_batches(one: Any, other: Any) -> None:
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for a, b in zip(first, second, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_it_is_the_data_set_in_memory(folder: Path, memory: Dataset) -> None:
    shards = load(folder)
    assert shards.name == "shards"
    assert shards.fingerprint == memory.fingerprint
    assert shards.schema == memory.schema
    for one, other in zip(shards.schema.features, memory.schema.features, strict=True):
        assert one.counts.tolist() == other.counts.tolist()  # type: ignore[union-attr]
    for part, split in shards.splits.items():
        there = memory.splits[part]
        assert isinstance(split, ShardedSplit)
        assert len(split) == len(there)
        for name in ("label", "ids", "numeric", "user"):
            assert torch.equal(getattr(split, name), getattr(there, name)), name
        picked = torch.randperm(len(split))[:70]
        for name in ("label", "ids", "numeric", "user"):
            one, other = (getattr(s.take(picked), name) for s in (split, there))
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    assert len(shards.splits["train"].rows.shards) > 2  # type: ignore[attr-defined]
    raw = pd.read_parquet(folder.parent / "clicks.parquet").iloc[:5]
    assert torch.equal(shards.encoding(raw).ids, memory.encoding(raw).ids)  # type: ignore[misc]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 5000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_those_of_memory(
    batch_size: int, shuffle: bool, folder: Path, memory: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featemb.datasets.sharded.CHUNK_ROWS", 150)
    for part in ("train", "valid"):
        how: dict[str, Any] = {"shuffle": shuffle, "seed": 3, "epoch": 2}
        one, other = open_shards(folder).splits[part], memory.splits[part]
        same_batches(one.batches(batch_size, **how), other.batches(batch_size, **how))


@pytest.mark.parametrize("window", [1, 100, 500, 2300])
def test_a_window_shuffles_blocks(
    window: int, folder: Path, memory: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featemb.datasets.sharded.CHUNK_ROWS", 130)
    split, there = open_shards(folder, window).splits["train"], memory.splits["train"]

    def order(seed: int, epoch: int) -> list[int]:
        found = rows(split.batches(50, shuffle=True, seed=seed, epoch=epoch))
        price = found[1][:, 0].tolist()
        assert len(set(price)) == len(price)
        place = {value: n for n, value in enumerate(there.numeric[:, 0].tolist())}  # type: ignore[index]
        at = [place[value] for value in price]
        assert torch.equal(there.ids[at].long(), found[0])  # type: ignore[index]
        assert torch.equal(there.label[at], found[2])
        return at

    first = order(0, 0)
    assert sorted(first) == list(range(len(there)))
    assert first != sorted(first)
    assert order(0, 0) == first
    assert len({tuple(order(*one)) for one in ((0, 0), (0, 1), (1, 0))}) == 3
    if window == 500:  # the first window is of 71 blocks of 7 rows, from all over the split
        blocks = {row // 7 for row in first[: 71 * 7]}
        assert len(blocks) <= 72
        assert max(blocks) - min(blocks) > 250


@settings(deadline=None, max_examples=60)
@given(
    number=st.integers(1, 500),
    window=st.integers(1, 600),
    block=st.integers(1, 90),
    seed=st.one_of(st.none(), st.integers(0, 5)),
)
def test_an_order_holds_every_row_once(
    number: int, window: int, block: int, seed: int | None
) -> None:
    order = BlockOrder(number, window, seed, 1, block)
    found, starts = [], order.starts
    for one in range(len(starts) - 1):
        read = [row for first, last in order.pieces(one) for row in range(first, last)]
        places = order.places(one, len(read))
        found += read if places is None else [read[place] for place in places]
        assert len(read) == starts[one + 1] - starts[one] <= max(window, 1)
        assert len(found) == starts[one + 1]
    assert sorted(found) == list(range(number))
    if seed is None:
        assert found == sorted(found)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("where", ["shards", "memory"])
def test_from_the_middle_of_an_epoch(
    where: str, shuffle: bool, folder: Path, memory: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featemb.datasets.sharded.CHUNK_ROWS", 130)
    data = memory if where == "memory" else open_shards(folder, window=500)
    split = data.splits["train"]
    whole = list(split.batches(37, shuffle=shuffle, seed=1))
    for number in (0, 1, 3, 16, len(whole) - 1, len(whole)):
        batches = split.batches(37, shuffle=shuffle, seed=1)
        assert batches.skip(number) == number
        same_batches(batches, whole[number:])
    batches = split.batches(37)
    assert batches.skip(10_000) == len(whole)
    assert not list(batches)
    next(started := split.batches(37))
    with pytest.raises(RuntimeError, match="before the first is read"):
        started.skip(1)


def test_skipping_reads_nothing_that_comes_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featemb.datasets.sharded.CHUNK_ROWS", 100)
    split = open_shards(folder, window=200).splits["train"]
    read: list[int] = []
    original = type(split.rows).read  # type: ignore[attr-defined]

    def noted(self: Any, kind: str, first: int, last: int, out: Any) -> None:
        read.append(first)
        original(self, kind, first, last, out)

    monkeypatch.setattr(type(split.rows), "read", noted)  # type: ignore[attr-defined]
    batches = split.batches(50)
    batches.skip(40)
    next(batches)
    assert min(read) >= 1800


def test_a_thread_reads_ahead_and_ends() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        assert threading.current_thread() is not threading.main_thread()
        if number == 7:
            raise DataError("number 7")
        return number

    found = ahead(make, 2, 100, depth=3)
    assert [next(found) for _ in range(5)] == [2, 3, 4, 5, 6]
    with pytest.raises(DataError, match="number 7"):
        next(found)
    found = ahead(make, 10, 100, depth=3)
    next(found)
    del found  # nobody asks for more
    for thread in threading.enumerate():
        if thread.name.startswith("featemb-batches"):
            thread.join(10)
            assert not thread.is_alive()
    assert max(made) <= 14


# ---- training ----


def net(data: Dataset, seed: int = 0) -> Any:
    layer = fe.embedding(data.schema, "full", dim=4, seed=seed)
    return models.build("dcnv2", embedding=layer, numeric=1, hidden=(8,), dropout=0.2, seed=seed)


def test_fit_goes_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    data = open_shards(folder, window=500)

    def run(seed: int, path: Path, stop: Any = None) -> Any:
        torch.manual_seed(seed)
        made = net(data, seed)
        train = data.splits["train"]
        fe.fit(
            made,
            lambda epoch: train.batches(50, shuffle=True, seed=0, epoch=epoch),
            epochs=2,
            checkpoint=path,
            stop=stop,
        )
        return made.state_dict()

    asked = iter(range(100))
    with pytest.raises(fe.Stopped):
        run(0, tmp_path / "one.pt", lambda: next(asked) == 69)
    found, straight = run(9, tmp_path / "one.pt"), run(0, tmp_path / "two.pt")
    assert all(torch.equal(found[name], straight[name]) for name in straight)


def config(data: Path, **settings: Any) -> RunConfig:
    base = TRAIN | {"epochs": 2, "eval_every": None, "method": "unified(lookups=2)", "ratio": 2.0}
    model = {"hidden": [8], "cross_layers": 1, "dropout": 0.2}
    return RunConfig(**{"data": str(data), "model_config": model, **base, **settings})


def test_a_run_is_that_of_memory(file: Path, folder: Path, memory: Dataset, tmp_path: Path) -> None:
    one = run_one(config(folder), tmp_path)
    other = run_one(config(file, data_options={"label": "click"}), tmp_path, memory)
    assert one["status"] == other["status"] == "ok"
    assert one["metrics"] == other["metrics"]
    assert one["bytes"]["serving"] == other["bytes"]["serving"]
    assert one["data"]["fingerprint"] == other["data"]["fingerprint"]
    part = run_one(config(folder, rows=500), tmp_path)
    there = run_one(config(file, data_options={"label": "click"}, rows=500), tmp_path, memory)
    assert part["metrics"] == there["metrics"]
    small = run_one(config(folder, data_options={"window": 500}), tmp_path)
    assert small["run_id"] != one["run_id"]


def test_the_command_trains_on_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "show", str(folder)])
    assert not ended.value.code
    assert "2,400" in capsys.readouterr().out
    flags = ["--dim", "4", "--epochs", "1", "--set", "hidden=[8]", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", str(folder), "--out", str(tmp_path), *flags])
    assert not ended.value.code
    (record,) = records.read_all(tmp_path).records.values()
    assert record["data"]["rows"]["train"] == 2400


# ---- what is broken ----


def test_a_corrupt_shard_is_named_and_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    data = copied(folder, tmp_path / "shards")
    run, out = config(data, method="full", ratio=None), tmp_path / "runs"
    shard = data / "shards" / "train-00002.ids.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8] + bytes(8))
    record = run_one(run, out, load(data), checkpoint=True)
    assert record["error"]["type"] == "DataError"
    assert "train-00002.ids.npy does not match its checksum" in record["error"]["message"]
    shard.write_bytes(whole)
    assert run_one(run, out, load(data), checkpoint=True)["status"] == "ok"
    run_one(run, tmp_path / "straight", load(data))
    equal(tmp_path / "straight" / run_id(run), out / run_id(run))


def test_a_shard_that_breaks_while_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featemb.datasets.sharded.CHUNK_ROWS", 64)
    monkeypatch.setattr("featemb.datasets.sharded.AHEAD", 1)
    data = open_shards(copied(folder, tmp_path / "shards"), window=64)
    shard = tmp_path / "shards" / "shards" / "train-00003.ids.npy"
    whole, path = shard.read_bytes(), tmp_path / "one.pt"
    calls = 0

    def cut() -> bool:
        nonlocal calls
        calls += 1
        if calls == 35:
            os.truncate(shard, 1000)  # at once: a writer would pass through 0 bytes
        return False

    def run(made: Any, path: Path | None, stop: Any = None) -> Any:
        train = data.splits["train"]
        fe.fit(made, lambda epoch: train.batches(64), epochs=1, checkpoint=path, stop=stop)
        return made.state_dict()

    with pytest.raises(DataError, match=r"train-00003.ids.npy has 1000 bytes, not"):
        run(net(data), path, cut)
    assert torch.load(path, weights_only=True)["at"]["step"] >= 35
    shard.write_bytes(whole)
    data = open_shards(tmp_path / "shards", window=64)
    torch.manual_seed(0)
    found = run(net(data, 5), path)
    assert set(found) == set(net(data).state_dict())


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda root: (root / "index.json").write_text("{}"), "holds no encoded shards"),
        (lambda root: (root / "shards" / "train-00001.label.npy").unlink(), "train-00001.label"),
        (
            lambda root: (root / "index.json").write_text(
                (root / "index.json").read_text().replace('"click"', '"klick"')
            ),
            "does not match its checksum",
        ),
    ],
)
def test_broken_folders_are_refused(
    break_it: Any, match: str, folder: Path, tmp_path: Path
) -> None:
    data = copied(folder, tmp_path / "shards")
    break_it(data)
    with pytest.raises(DataError, match=match):
        load(data)


@pytest.mark.parametrize("window", [0, -3, True, 2.5])
def test_a_window_is_a_positive_integer(window: Any, folder: Path) -> None:
    with pytest.raises(DataError, match="window of a shuffle must be a positive integer"):
        load(folder, window=window)


def test_options_of_a_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="unknown option 'windw'; did you mean 'window'"):
        load(folder, windw=3)
    with pytest.raises(DataError, match="label and recipe are for tables"):
        load(folder, label="click")
    assert json.loads((folder / "index.json").read_text())["format"] == "featemb-shards-1"
