"""Encoding against a brute-force reference in pandas, and what it promises beside the values."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from featemb.datasets import Column, Dataset, Recipe, SplitRule, load
from featemb.datasets.cache import encoded
from featemb.datasets.recipe import PARTS
from featemb.datasets.source import Source, parquet
from featemb.datasets.splitting import assign
from featemb.datasets.vocabulary import Moments
from featemb.errors import DataError

ROWS = 3000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random = np.random.default_rng(3)
    user = (random.zipf(1.3, ROWS) % 200).astype(object)
    user[random.random(ROWS) < 0.05] = None
    city = np.array(["a", "b", "é", "", "zz"])[random.integers(0, 5, ROWS)].astype(object)
    city[random.random(ROWS) < 0.1] = None
    price = random.normal(1e6, 3, ROWS)
    price[random.random(ROWS) < 0.1] = np.nan
    tags = [list(random.choice(["x", "y", "z", "w"], k)) for k in random.integers(0, 4, ROWS)]
    when = random.integers(0, 500, ROWS)
    frame = pd.DataFrame({"user": pd.array(user, "Int64"), "city": city, "price": price})
    return frame.assign(tags=tags, when=when, click=(random.random(ROWS) < 0.4).astype("int8"))


@pytest.fixture(scope="module")
def path(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.parquet"
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, path, row_group_size=257)
    return path


def recipe(**settings: Any) -> Recipe:
    columns = [
        Column(name="user"),
        Column(name="city", min_count=1),
        Column(name="tags", multi=True),
        Column(name="price", kind="numeric", transform="none"),
    ]
    return Recipe(**{"label": "click", "columns": columns, "min_count": 5, **settings})


def reference_ids(values: pd.Series, train: np.ndarray, min_count: int) -> tuple[list[int], Any]:
    """Ids by descending training count, ties by value; 0 for missing, rare, unknown."""
    known = Counter(v for v in values[train] if not (pd.isna(v) or v == ""))
    kept = sorted((v for v, n in known.items() if n >= min_count), key=lambda v: (-known[v], v))
    place = {value: n + 1 for n, value in enumerate(kept)}
    ids = [0 if pd.isna(v) or v == "" else place.get(v, 0) for v in values]
    return ids, place


def part_of(rows: int, rule: SplitRule) -> np.ndarray:
    order = np.random.default_rng(rule.seed).permutation(rows)
    part = np.empty(rows, int)
    part[order] = np.repeat([0, 1, 2], [rows * 8 // 10, rows // 10, rows // 10])
    return part


def column(data: Dataset, name: str, part: str) -> np.ndarray:
    split, place = data.splits[part], data.schema.index(name)
    if split.ids is not None:
        return split.ids[:, place].numpy()
    return split.bags[place].values.numpy()


@pytest.mark.parametrize("name", ["user", "city"])
def test_ids_and_counts_equal_the_reference(path: Path, frame: pd.DataFrame, name: str) -> None:
    made = recipe(split=SplitRule(seed=4))
    data = load(path, recipe=made)
    part = part_of(ROWS, made.split)
    expected, place = reference_ids(frame[name], part == 0, 5 if name == "user" else 1)
    for number, key in enumerate(PARTS):
        assert column(data, name, key).tolist() == [
            i for i, p in zip(expected, part, strict=True) if p == number
        ]
    feature = data.schema.features[data.schema.index(name)]
    assert feature.cardinality == len(place) + 1
    train_ids = [i for i, p in zip(expected, part, strict=True) if p == 0]
    assert feature.counts is not None
    assert feature.counts.tolist() == np.bincount(train_ids, minlength=len(place) + 1).tolist()
    assert (np.diff(feature.counts[1:]) <= 0).all(), "ids are ordered by frequency"


def test_bags_equal_the_reference(path: Path, frame: pd.DataFrame) -> None:
    made = recipe(split=SplitRule(seed=4), min_count=1)
    data = load(path, recipe=made)
    part = part_of(ROWS, made.split)
    train = Counter(tag for tags in frame.tags[part == 0] for tag in tags)
    place = {tag: n + 1 for n, tag in enumerate(sorted(train, key=lambda t: (-train[t], t)))}
    for number, key in enumerate(PARTS):
        bag = data.splits[key].bags[data.schema.index("tags")]
        expected = [[place[t] for t in tags] for tags in frame.tags[part == number]]
        assert bag.values.tolist() == [i for ids in expected for i in ids]
        assert bag.offsets.diff().tolist() == [len(ids) for ids in expected]
    assert data.schema.features[data.schema.index("tags")].max_length == 3


def test_numbers_are_standardised_by_training_statistics(path: Path, frame: pd.DataFrame) -> None:
    made = recipe(split=SplitRule(seed=4))
    data = load(path, recipe=made)
    part = part_of(ROWS, made.split)
    train = frame.price[part == 0].dropna()
    scaled = ((frame.price - train.mean()) / train.std(ddof=0)).fillna(0.0)
    for number, key in enumerate(PARTS):
        numeric = data.splits[key].numeric
        assert numeric is not None
        expected = scaled[part == number].to_numpy()[:, None]
        np.testing.assert_allclose(numeric.numpy(), expected, atol=1e-5)


def test_moments_survive_large_means() -> None:
    values = np.random.default_rng(0).normal(1e12, 1.0, 10_000)
    moments = Moments()
    for chunk in np.split(values, 20):
        moments.add(chunk)
    mean, deviation = moments.close()
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert deviation == pytest.approx(values.std(), rel=1e-3)


def test_vocabulary_is_fit_on_the_training_split_only(tmp_path: Path) -> None:
    values = ["seen"] * 8 + ["valid only", "valid only", "test only", "test only"]
    table = pa.table({"v": values, "click": [0, 1] * 6, "w": ["a", "b"] * 6})
    pq.write_table(table, tmp_path / "t.parquet")
    rule = SplitRule(rule="order", fractions=(8 / 12, 2 / 12, 2 / 12))
    made = Recipe(label="click", columns=[Column(name="v"), Column(name="w")], split=rule)
    data = load(tmp_path / "t.parquet", recipe=made)
    assert data.schema.cardinalities == (2, 3)
    assert column(data, "v", "train").tolist() == [1] * 8
    assert column(data, "v", "valid").tolist() == [0, 0]
    assert column(data, "v", "test").tolist() == [0, 0]
    assert data.schema.features[0].counts is not None
    assert data.schema.features[0].counts.tolist() == [0, 8]


def test_groups_keep_users_that_share_the_unknown_id(tmp_path: Path) -> None:
    user = ["a", "a", "a", "b", "b", "b", "c", "d", "c", None]
    table = pa.table({"user": user, "item": list("xyxyxyxyxy"), "click": [0, 1] * 5})
    pq.write_table(table, tmp_path / "t.parquet")
    rule = SplitRule(rule="order", fractions=(0.6, 0.2, 0.2))
    made = Recipe(label="click", columns=[Column(name="item")], split=rule, user="user")
    data = load(tmp_path / "t.parquet", recipe=made)
    groups = torch.cat([data.splits[part].user for part in PARTS])
    assert groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 2, -1]


@pytest.mark.parametrize("rows", [100, 65_536, 7])
def test_answer_does_not_depend_on_the_batches(
    path: Path, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(path, recipe=recipe(user="user"), cache=tmp_path / "a")
    monkeypatch.setattr("featemb.datasets.source.BATCH_ROWS", rows)
    again = load(path, recipe=recipe(user="user"), cache=tmp_path / "b")
    assert whole.fingerprint == again.fingerprint
    for part in PARTS:
        for one, other in zip(whole.splits[part].bags, again.splits[part].bags, strict=True):
            assert torch.equal(one.values, other.values)
            assert torch.equal(one.offsets, other.offsets)
        assert torch.equal(whole.splits[part].user, again.splits[part].user)


def test_fingerprint_follows_the_content(path: Path) -> None:
    made = {load(path, recipe=recipe(min_count=n)).fingerprint for n in (1, 2, 5)}
    made.add(load(path, recipe=recipe(split=SplitRule(seed=9))).fingerprint)
    assert len(made) == 4
    assert all(len(digest) == 64 for digest in made)


def test_memory_holds_one_batch_at_a_time(path: Path, tmp_path: Path) -> None:
    """Batches are counted while they live: the stream never holds more than a few, of 100 rows."""
    born: list[weakref.ref[Any]] = []
    most, passes = 0, 0

    def stream() -> Iterator[pa.RecordBatch]:
        nonlocal most, passes
        passes += 1
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(100):
                assert batch.num_rows <= 100
                born.append(weakref.ref(batch))
                most = max(most, sum(one() is not None for one in born))
                yield batch

    data = encoded("own", Source([path], stream), recipe(), tmp_path, {})
    assert len(data.splits["train"]) == 2400
    assert passes == 3, "one pass to split, one to count, one to encode"
    assert most <= 3
    assert most * 100 < ROWS / 5


def parts_of(path: Path, **rule: Any) -> np.ndarray:
    return assign(parquet(path), recipe(split=SplitRule(**rule)))


def test_split_by_order_and_time(path: Path, frame: pd.DataFrame) -> None:
    parts = parts_of(path, rule="order", fractions=(0.72, 0.08, 0.2))
    assert np.bincount(parts).tolist() == [2160, 240, 600]
    assert (np.diff(parts) >= 0).all()
    parts = parts_of(path, rule="time", column="when")
    order = frame.when.argsort(kind="stable")
    assert (np.diff(parts[order]) >= 0).all()
    assert np.bincount(parts).tolist() == [2400, 300, 300]


@pytest.mark.parametrize("rows", [3, 4, 5, 11])
def test_every_part_gets_a_row(tmp_path: Path, rows: int) -> None:
    pq.write_table(pa.table({"user": list(range(rows))}), tmp_path / "t.parquet")
    assert set(parts_of(tmp_path / "t.parquet").tolist()) == {0, 1, 2}


def test_split_by_column(tmp_path: Path) -> None:
    table = pa.table({"part": ["a"] * 100 + ["b"] * 20})
    pq.write_table(table, tmp_path / "t.parquet")
    values = {"train": "a", "test": "b"}
    parts = parts_of(tmp_path / "t.parquet", rule="column", column="part", values=values, seed=1)
    assert np.bincount(parts).tolist() == [90, 10, 20]
    assert (parts[100:] == 2).all()
    values = {"train": "a", "test": "c"}
    with pytest.raises(DataError, match="'b' is none of"):
        parts_of(tmp_path / "t.parquet", rule="column", column="part", values=values)


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"click": [0, 1, 2]}, {}, "label 'click' must be 0 or 1, got 2 in row 2"),
    ({"click": [0, None, 1]}, {}, "values are missing, the first in row 1"),
    ({"click": ["yes", "no", "no"]}, {}, "label 'click' must be 0 or 1"),
    ({"click": [1, 1, 1]}, {}, "0 rows of label 0"),
    ({"clack": [0, 1, 0]}, {}, "no column 'click'; did you mean 'clack'"),
    ({"v": [[1.5], [2.5], [3.5]]}, {}, "not supported"),
    ({"v": ["a", "b", "c"], "multi": True}, {}, "multi-valued but holds"),
    ({"n": [1.0, float("inf"), 2.0]}, {}, "column 'n' holds an infinite value"),
    ({"n": ["1", "two", "3"]}, {}, "column 'n' is not numeric"),
    ({}, {"user": "usr"}, "no column 'usr'"),
    ({}, {"split": SplitRule(rule="time", column="tim")}, "no column 'tim'"),
]


@pytest.mark.parametrize(("cells", "settings", "message"), CASES)
def test_errors(
    tmp_path: Path, cells: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    cells = dict(cells)
    multi = bool(cells.pop("multi", False))
    base: dict[str, Any] = {"v": ["a", "b", "a"], "n": [1.0, 2.0, 3.0]}
    if "clack" not in cells:
        base["click"] = [0, 1, 0]
    whole = {name: values * 20 for name, values in {**base, **cells}.items()}
    pq.write_table(pa.table(whole), tmp_path / "t.parquet")
    columns = [Column(name="v", multi=multi), Column(name="n", kind="numeric")]
    if whole["v"][0] == [1.5]:
        columns[0] = Column(name="v")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        load(
            tmp_path / "t.parquet",
            recipe=Recipe(label="click", columns=columns, **settings),
            cache=tmp_path,
        )
    assert not list(tmp_path.glob(".t-*")), "nothing half-made is left"


def test_types_of_values(tmp_path: Path) -> None:
    """Every type keeps its values apart; NaN, null and the empty text are missing."""
    columns = {
        "bool": [True, False, None] * 20,
        "float": [1.0, 2.5, float("nan")] * 20,
        "large": pa.array(["a", "b", ""] * 20, pa.large_string()),
        "dictionary": pa.array(["a", "b", None] * 20).dictionary_encode(),
        "big": pa.array([2**64 - 1, 1, None] * 20, pa.uint64()),
        "date": pa.array([0, 1, None] * 20, pa.date32()),
    }
    pq.write_table(pa.table({**columns, "click": [0, 1] * 30}), tmp_path / "t.parquet")
    made = Recipe(label="click", columns=[Column(name=name) for name in columns])
    data = load(tmp_path / "t.parquet", recipe=made)
    assert data.schema.cardinalities == (3,) * 6
    ids = data.splits["train"].ids
    assert ids is not None
    assert ids.dtype == torch.int32
    assert ((ids > 0) == (ids[:, :1] > 0)).all(), "the same rows are missing everywhere"
