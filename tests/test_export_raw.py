"""Raw rows into exported files: the ids and scores of training, for every kind of column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import featemb as fe
from featemb import datasets
from featemb.datasets.dataset import Dataset
from featemb.export import MISSING, Encoder, RawFeature, RawNumber, text_token
from featemb.export.artefact import row_tokens
from featemb.export.safetensors import encoded
from featemb.export.tokens import value_tokens

ROWS = 300


def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    lists = [list(random.integers(0, 6, random.integers(0, 4)).astype(str)) for _ in range(ROWS)]
    half = np.where(random.random(ROWS) < 0.1, np.nan, random.integers(-3, 9, ROWS) / 2)
    return pd.DataFrame(
        {
            "user": random.integers(-5, 40, ROWS),
            "city": random.choice(["Bern", "Zürich", "", "日本"], ROWS),
            "half": half,
            "tags": lists,
            "words": random.choice(["a| b", "b", "", "c|a|c"], ROWS),
            "price": np.where(random.random(ROWS) < 0.1, np.nan, random.lognormal(size=ROWS)),
            "time": random.integers(10**9, 2 * 10**9, ROWS),
            "click": random.integers(0, 2, ROWS),
        }
    )


def dataset(folder: Path, multi: bool, hashing: dict[str, int] | None = None) -> Dataset:
    columns: list[dict[str, Any]] = [
        {"name": "user", "min_count": 3},
        {"name": "city"},
        {"name": "half"},
        *([{"name": "tags", "multi": True}] if multi else []),
        *([{"name": "words", "multi": True, "separator": "|"}] if multi else []),
        {"name": "price", "kind": "numeric"},
        {"name": "time", "kind": "numeric", "transform": "none"},
    ]
    recipe: dict[str, Any] = {"label": "click", "columns": columns, "split": {"rule": "order"}}
    if hashing is not None:
        recipe["hashing"] = hashing
        for column in columns:
            column.pop("min_count", None)
    frame().to_parquet(folder / "rows.parquet")
    (folder / "recipe.json").write_text(pd.Series(recipe).to_json())
    return datasets.load(
        str(folder / "rows.parquet"), schema=folder / "recipe.json", cache=folder / "cache"
    )


def model(data: Dataset) -> fe.models.CTRModel:
    layer = fe.embedding(data.schema, "unified(lookups=2)+int8", dim=4, budget=2000)
    return fe.models.build("deepfm", embedding=layer, hidden=(6,)).freeze()


@pytest.mark.parametrize("hashing", [None, {"size": 50, "seed": 3}], ids=["known", "hashed"])
@pytest.mark.parametrize("multi", [False, True])
def test_an_encoder_gives_the_ids_of_training(
    multi: bool, hashing: dict[str, int] | None, tmp_path: Path
) -> None:
    data = dataset(tmp_path, multi, hashing)
    assert data.encoding is not None
    encoder = data.encoding.encoder(data.schema)
    rows = frame().drop(columns="click")
    strange = rows.head(6).assign(
        user=[None, 10**15, -4, 3, 2, 1],
        city=["nowhere", None, "Bern", "bern", "", "日本"],
        price=[None, 1e30, -3.0, 0.0, 1.0, 2.0],
    )
    for table in (rows, strange):
        wanted = data.encoding(table)
        ids, numeric = encoded(encoder, row_tokens(table, encoder.describe(), data.schema, 2))
        assert torch.equal(numeric, wanted.numeric)
        assert type(ids) is type(wanted.ids)
        assert all(torch.equal(a, b) for a, b in zip(ids, wanted.ids, strict=True))


@pytest.mark.parametrize(
    ("multi", "to"), [(False, "safetensors"), (True, "safetensors"), (True, "pt2"), (True, "onnx")]
)
def test_raw_rows_score_as_in_training(multi: bool, to: str, tmp_path: Path) -> None:
    data = dataset(tmp_path, multi)
    assert data.encoding is not None
    net = model(data)
    encoder = data.encoding.encoder(data.schema)
    found = fe.export(net, tmp_path / "file", to=to, encoder=encoder, examples=frame().head(50))
    wanted = data.encoding(frame())
    scores = net(wanted.ids, wanted.numeric)
    assert (found.raw(frame()) - scores).abs().max() < 1e-5
    assert (found.raw(frame().iloc[7:8]) - scores[7:8]).abs().max() < 1e-5
    table = pa.Table.from_pandas(frame()).drop(["click"])
    assert torch.equal(found.raw(table), found.raw(frame()))


def test_cells_come_in_many_forms(tmp_path: Path) -> None:
    data = dataset(tmp_path, True)
    assert data.encoding is not None
    found = fe.export(model(data), tmp_path / "file", encoder=data.encoding.encoder(data.schema))
    rows = frame().head(6)
    wanted = found.raw(rows)
    split = [[one for one in text.replace(" ", "").split("|") if one] for text in rows["words"]]
    assert torch.equal(found.raw(rows.assign(words=split)), wanted)
    assert torch.equal(found.raw(rows.astype({"city": "category", "words": "category"})), wanted)
    assert torch.equal(found.raw(rows.to_dict("list")), wanted)
    table = pa.Table.from_pandas(rows)
    chunks = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert torch.equal(found.raw(chunks), wanted)
    huge = rows.assign(user=np.array([2**64 - 1] * 6, np.uint64))
    assert torch.equal(found.raw(huge), found.raw(rows.assign(user=[None] * 6)))
    with pytest.raises(fe.SchemaError, match=r"'words' holds int64, the model.*or lists"):
        found.raw(rows.assign(words=3))


def test_texts_are_hashed_as_told() -> None:
    assert text_token("a") == 0xAF63DC4C8601EC8C - (1 << 64)
    assert text_token("foobar") == 0x85944171F73967E8 - (1 << 64)
    assert text_token("") == MISSING
    texts = ["", "a", "foobar", "日本", None, "x" * 300, "a"]
    found = value_tokens(texts, "text", "city")
    assert found.tolist() == [text_token(one or "") for one in texts]


def test_tokens_of_numbers() -> None:
    assert value_tokens([1.5, None, -0.0, 0.0], "float", "x").tolist() == [
        np.float64(1.5).view(np.int64),
        MISSING,
        0,
        0,
    ]
    assert value_tokens([3.0, None, 2.5], "integer", "x").tolist() == [3, MISSING, MISSING]
    with pytest.raises(fe.SchemaError, match="'x' holds string, the model was trained on integers"):
        value_tokens(["3"], "integer", "x")
    with pytest.raises(fe.SchemaError, match="'x' holds bool, the model was trained on floats"):
        value_tokens([True], "float", "x")


SCHEMA = fe.Schema([fe.Feature("user"), fe.Feature("item", 50), fe.Feature("day", 7)], ["age"])
FEATURES = [
    RawFeature(name="user", cells="text", rule="hash"),
    RawFeature(name="item", rule="hash", seed=3),
    RawFeature(name="day", rule="id"),
]


def test_hashes_and_ids_need_no_vocabulary(tmp_path: Path) -> None:
    encoder = Encoder.of(SCHEMA, FEATURES, [RawNumber(name="age", mean=40.0, deviation=10.0)])
    layer = fe.embedding(SCHEMA, "hash(rows=90)", dim=4)
    rows = {"user": ["a", "b", None], "item": [5, 10**12, None], "day": [0, 6, 3], "age": [1, 2, 3]}
    found = [
        fe.export(layer, tmp_path / to, to=to, encoder=encoder).raw(rows)
        for to in ("safetensors", "onnx")
    ]
    assert torch.equal(found[0], found[1])
    ids, _ = encoded(encoder, row_tokens(rows, encoder.describe(), SCHEMA, 0))
    assert isinstance(ids, torch.Tensor)
    assert ids[2, 1] == 0
    assert 0 < ids[1, 1] < 50
    assert ids[:, 2].tolist() == [0, 6, 3]
    assert torch.equal(layer(ids), found[0])
    graph = fe.load(tmp_path / "onnx")
    wrong = graph.raw({**rows, "day": [0, 7, -1]})
    assert torch.isnan(wrong[1:]).all()
    assert torch.equal(wrong[0], found[0][0])
    with pytest.raises(fe.IdError, match="'day': id 7"):
        fe.load(tmp_path / "safetensors").raw({**rows, "day": [0, 7, 1]})


def test_encoders_that_do_not_fit_are_refused() -> None:
    schema = fe.Schema([fe.Feature("city", 3)])
    with pytest.raises(fe.ConfigError, match=r"'city' has 3 ids.*2 values"):
        Encoder.of(schema, [RawFeature(name="city", cells="text", values=["x"])])
    with pytest.raises(fe.ConfigError, match="two values of its vocabulary have one token"):
        Encoder.of(schema, [RawFeature(name="city", values=[4, 4])])
    with pytest.raises(fe.ConfigError, match="features must be the schema's"):
        Encoder.of(schema, [RawFeature(name="town", values=[1, 2])])
    with pytest.raises(fe.ConfigError, match="unbounded"):
        Encoder.of(fe.Schema([fe.Feature("city")]), [RawFeature(name="city", values=[1])])


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path, False)
    assert data.encoding is not None
    encoder = data.encoding.encoder(data.schema)
    found = fe.export(model(data), tmp_path / "file", to="pt2", encoder=encoder)
    with pytest.raises(fe.DataError, match="lack the column 'city'"):
        found.raw(frame().drop(columns="city"))
    with pytest.raises(fe.DataError, match="no rows"):
        found.raw(frame().head(0))
    with pytest.raises(fe.DataError, match="'price' holds an infinite value"):
        found.raw(frame().assign(price=np.inf))
    with pytest.raises(fe.SchemaError, match=r"'user' holds .*string, the model"):
        found.raw(frame().assign(user="x"))
    with pytest.raises(fe.SchemaError, match="takes raw rows"):
        found(torch.zeros(1, 3, dtype=torch.int64))
    numbers = torch.tensor([[1.0, torch.inf], [1.0, torch.nan]], dtype=torch.float64)
    scores = found.run({"tokens": torch.full((2, 3), MISSING), "numbers": numbers})
    assert torch.isnan(scores).tolist() == [True, False]
