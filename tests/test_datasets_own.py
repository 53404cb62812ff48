"""Your own table: inference, recipes as files, loading; CSV and Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featemb.datasets import Column, Recipe, SplitRule, infer, load
from featemb.errors import DataError

ROWS = 2000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "row": np.arange(ROWS),
            "user_id": random.integers(0, 1500, ROWS),
            "itemId": random.integers(0, 1500, ROWS).astype(float),
            "bid": random.integers(0, 10**9, ROWS) // 3 * 2,
            "hour": random.integers(0, 24, ROWS),
            "site": random.choice(["a", "b", "c"], ROWS),
            "mobile": random.random(ROWS) < 0.5,
            "price": random.normal(size=ROWS),
            "one": "same",
            "when": pd.date_range("2026-01-01", periods=ROWS, freq="min")[::-1],
            "uuid": [f"{n:032x}" for n in range(ROWS)],
            "genres": random.choice(["Drama", "Comedy|Drama", "War"], ROWS),
            "tags": [["x", "y"][: n % 3] for n in range(ROWS)],
            "vector": [[0.5, float(n)] for n in range(ROWS)],
            "click": (random.random(ROWS) < 0.3).astype(int),
        }
    )
    frame.loc[3, "itemId"] = np.nan
    frame["bid"] = frame["bid"].where(frame.index % 5 > 0, 7)
    path = tmp_path_factory.mktemp("own") / "my.parquet"
    frame.to_parquet(path)
    return path


def test_inference_decides_and_says_why(path: Path) -> None:
    recipe = infer(path, "click")
    kinds = {column.name: column for column in recipe.columns}
    categorical = {"user_id", "itemId", "hour", "site", "mobile", "genres", "tags"}
    assert {name for name, column in kinds.items() if column.kind == "categorical"} == categorical
    assert {name for name, column in kinds.items() if column.kind == "numeric"} == {"bid", "price"}
    assert {name for name, column in kinds.items() if column.multi} == {"genres", "tags"}
    assert kinds["genres"].separator == "|"
    assert kinds["bid"].transform == "log"
    assert kinds["price"].transform == "none"
    assert all(column.reason for column in recipe.columns)
    assert "whose name says id" in kinds["itemId"].reason
    assert recipe.dropped.keys() == {"row", "one", "when", "uuid", "vector"}
    assert recipe.dropped["row"] == recipe.dropped["uuid"] == "a different value in every row"
    assert recipe.dropped["one"] == "constant"
    assert "date or time" in recipe.dropped["when"]


def test_load_by_label_by_recipe_and_by_file(path: Path, tmp_path: Path) -> None:
    data = load(path, label="click", user="user_id", time="when", min_count=3)
    assert data.name == "my"
    assert data.meta["user"] == "user_id"
    assert data.splits["train"].user is not None
    assert isinstance(next(data.splits["train"].batches(8)).ids, tuple)
    recipe = infer(path, "click", user="user_id", time="when", min_count=3)
    assert "when" in recipe.dropped
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert load(path, recipe=recipe).fingerprint == data.fingerprint
    assert load(str(path), schema=tmp_path / "recipe.json").fingerprint == data.fingerprint
    edited = recipe.to_json().replace('"min_count": 3', '"min_count": 1')
    (tmp_path / "recipe.json").write_text(edited)
    assert load(path, schema=tmp_path / "recipe.json").fingerprint != data.fingerprint


def test_time_split_is_chronological(path: Path) -> None:
    data = load(path, label="click", time="when")
    frame = pd.read_parquet(path).sort_values("when")
    test = frame.iloc[-200:].sort_index()
    assert data.splits["test"].label.tolist() == test.click.astype(float).tolist()


def test_given_separators(tmp_path: Path) -> None:
    rows = ["a;b", "b", "", "c; a"] * 30
    frame = pd.DataFrame({"tags": rows, "site": ["x", "y"] * 60, "click": [0, 1, 1, 0] * 30})
    frame.to_parquet(tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", label="click", separators={"tags": ";"})
    assert data.schema.features[0].multi
    lengths = torch.cat([data.splits[p].bags[0].offsets.diff() for p in data.splits])
    assert sorted(lengths.tolist()) == [0] * 30 + [1] * 30 + [2] * 60
    assert data.schema.features[0].cardinality == 4, "spaces around a value do not count"


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz"])
def test_text_tables(tmp_path: Path, ending: str) -> None:
    frame = pd.DataFrame(
        {
            "name": ['say "hi", all', "two\nlines", "é", None] * 50,
            "n": [1.5, None, -2.0, 3.25] * 50,
            "click": [0, 1, 1, 0] * 50,
        }
    )
    path = tmp_path / f"t.{ending}"
    frame.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    frame.to_parquet(tmp_path / "t.parquet")
    text, table = load(path, label="click"), load(tmp_path / "t.parquet", label="click")
    assert text.schema.cardinalities == (4,)
    assert text.fingerprint == table.fingerprint


def test_booleans_are_labels(tmp_path: Path) -> None:
    table = pa.table({"v": ["a", "b"] * 50, "click": [True, False, False, True] * 25})
    pq.write_table(table, tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet", label="click").splits["train"].label.mean() < 1


ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("my.parquet", {"label": "clik"}, "no column 'clik'; did you mean 'click'"),
    ("my.parquet", {}, "give the label's column"),
    (
        "my.parquet",
        {"label": "click", "usr": "user_id"},
        "unknown option 'usr'; did you mean 'user'",
    ),
    ("my.parquet", {"label": "click", "user": "usr_id"}, "no column 'usr_id'; did you mean"),
    ("my.parquet", {"label": "click", "schema": "none.json"}, "cannot read the schema"),
    ("my.parquet", {"label": "hour"}, "label 'hour' must be 0 or 1"),
    ("no.parquet", {"label": "click"}, "neither a data set nor a file"),
    ("torn.parquet", {"label": "click"}, r"cannot read torn\.parquet"),
    ("latin.csv", {"label": "click"}, r"cannot read latin\.csv"),
    ("empty.csv", {"label": "click"}, r"empty\.csv"),
    ("empty.parquet", {"label": "click"}, r"empty\.parquet has no rows"),
    ("what.xlsx", {"label": "click"}, r"must be \.parquet, \.csv or \.tsv"),
]


@pytest.mark.parametrize(("name", "options", "message"), ERRORS)
def test_errors(
    path: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "my.parquet").write_bytes(path.read_bytes())
    (tmp_path / "torn.parquet").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "latin.csv").write_bytes("v,click\nf\xfcr,1\nb,0\n".encode("latin-1"))
    (tmp_path / "empty.csv").write_text("")
    pq.write_table(pa.table({"click": pa.array([], pa.int8())}), tmp_path / "empty.parquet")
    (tmp_path / "what.xlsx").write_text("x")
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, **options)


COLUMNS = st.builds(
    Column,
    name=st.text(min_size=1, max_size=8),
    kind=st.sampled_from(["categorical"]),
    multi=st.booleans(),
    pooling=st.sampled_from(["sum", "mean", "max"]),
    min_count=st.none() | st.integers(1, 9),
    transform=st.sampled_from(["none", "log"]),
    reason=st.text(max_size=8),
)
RULES = st.sampled_from(
    [
        SplitRule(),
        SplitRule(seed=7, fractions=(0.5, 0.25, 0.25)),
        SplitRule(rule="time", column="when"),
        SplitRule(rule="column", column="p", values={"train": "a", "test": "b"}, valid_share=0.2),
    ]
)


@given(
    columns=st.lists(COLUMNS, min_size=1, max_size=4, unique_by=lambda column: column.name),
    min_count=st.integers(1, 50),
    split=RULES,
)
def test_recipes_round_trip(columns: list[Column], min_count: int, split: SplitRule) -> None:
    recipe = Recipe(
        label="the label of all",
        columns=columns,
        min_count=min_count,
        split=split,
        dropped={"x": "y"},
    )
    assert Recipe.from_json(recipe.to_json()) == recipe


BAD = [
    ("[]", "must be a JSON object"),
    ("{", "must be JSON"),
    ('{"label": "y", "columns": [{"name": "a", "pool": "sum"}]}', "did you mean 'pooling'"),
    ('{"label": "y", "columns": [{"name": "a"}], "splits": {}}', "did you mean 'split'"),
    ('{"label": "y", "columns": [{"name": "a", "kind": "category"}]}', "'categorical'"),
    ('{"label": "y", "columns": [{"name": "a", "min_count": 0}]}', "min_count must be >= 1"),
    ('{"label": "y", "columns": [{"name": "a", "min_count": "2"}]}', "column"),
    ('{"label": "y", "columns": []}', "at least one categorical"),
    ('{"label": "y", "columns": 3}', "recipe"),
    ('{"label": "a", "columns": [{"name": "a"}]}', "distinct"),
    ('{"columns": [{"name": "a"}]}', "label"),
    ('{"label": "y", "columns": [{"name": "a"}], "split": {"rule": "radom"}}', "'random'"),
    ('{"label": "y", "columns": [{"name": "a"}], "split": {"fractions": [1, 0, 0]}}', "sum 1"),
    ('{"label": "y", "columns": [{"name": "a"}], "split": {"rule": "time"}}', "needs a column"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_wrong_recipes_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Recipe.from_json(text)
