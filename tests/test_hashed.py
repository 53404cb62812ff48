"""Hashed ids against the documented formula, written out in Python integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb import datasets
from featemb.datasets import Column, Hashing, Recipe
from featemb.errors import DataError
from featemb.export import Encoder, RawFeature
from featemb.export.tokens import value_tokens

WHOLE = (1 << 64) - 1
LARGEST = (1 << 63) - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WHOLE
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WHOLE
    return x ^ (x >> 31)


def fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & WHOLE
    return value


def reference(token: int, hashing: Hashing, feature: int) -> int:
    if hashing.size is None:
        return token & LARGEST
    salt = mix((hashing.seed << 20) + feature + 1)
    return 1 + (mix((token + salt) & WHOLE) & LARGEST) % (hashing.size - 1)


# A busy machine draws slowly: that is no failure.
PATIENT = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
HASHINGS = st.builds(
    Hashing, size=st.none() | st.integers(2, LARGEST), seed=st.integers(0, 2**43 - 1)
)


@PATIENT
@given(st.lists(st.text(max_size=40), min_size=1, max_size=20), HASHINGS, st.integers(0, 3))
def test_texts(texts: list[str], hashing: Hashing, skipped: int) -> None:
    values = pa.array([*["skipped"] * skipped, *texts]).slice(skipped)
    expected = [reference(fnv(text), hashing, 7) if text else 0 for text in texts]
    assert hashing.ids(values, 7).tolist() == expected


@PATIENT
@given(st.lists(st.integers(-(2**63) + 1, LARGEST), min_size=1, max_size=20), HASHINGS)
def test_integers(numbers: list[int], hashing: Hashing) -> None:
    expected = [reference(n & WHOLE, hashing, 0) for n in numbers]
    assert hashing.ids(pa.array(numbers, pa.int64()), 0).tolist() == expected


def test_fractions_and_signed_zero() -> None:
    hashing = Hashing(size=10**6)
    bits = [int(np.float64(x).view(np.uint64)) for x in (1.5, 0.0, 0.0)]
    expected = [reference(one, hashing, 1) for one in bits]
    assert hashing.ids(pa.array([1.5, 0.0, -0.0]), 1).tolist() == expected


@pytest.mark.parametrize("size", [None, 2, 1000])
@pytest.mark.parametrize("kind", ["text", "integer", "float"])
def test_an_exported_encoder_gives_the_same_ids(size: int | None, kind: str) -> None:
    values = {"text": ["a", "é" * 9, "7"], "integer": [5, -3, 7], "float": [0.5, 7.0, -0.0]}[kind]
    schema = fe.Schema([fe.Feature("x", size), fe.Feature("y", size)])
    raw = [RawFeature(name=n, cells=kind, rule="hash", seed=4) for n in "xy"]  # type: ignore[arg-type]
    encoder = Encoder.of(schema, raw)
    rows = pa.table({"x": [*values, None], "y": [None, *values]})
    tokens = [value_tokens(rows.column(n).combine_chunks(), kind, n) for n in "xy"]  # type: ignore[arg-type]
    ids = encoder(torch.from_numpy(np.stack(tokens, 1)), torch.arange(2))
    hashing = Hashing(size=size, seed=4)
    for place, name in enumerate("xy"):
        column = rows.column(name).combine_chunks()
        assert hashing.ids(column, place).tolist() == ids[:, place].tolist()


@pytest.mark.parametrize("size", [None, 50])
def test_hashed_data_are_served_by_their_encoder(size: int | None, tmp_path: Path) -> None:
    rows = pa.table({"s": ["a", "b", None] * 20, "n": [*range(30)] * 2, "y": [0, 1, 1] * 20})
    columns = [Column(name="s"), Column(name="n")]
    recipe = Recipe(label="y", columns=columns, hashing=Hashing(size=size, seed=9))
    pq.write_table(rows, tmp_path / "t.parquet")
    data = datasets.load(tmp_path / "t.parquet", recipe=recipe)
    index = datasets.encode(tmp_path / "t.parquet", tmp_path / "out", recipe=recipe, workers=1)
    assert data.encoding is not None
    expected = data.encoding(rows).ids
    assert isinstance(expected, torch.Tensor)
    for encoding in (data.encoding, index.encoding()):
        encoder = encoding.encoder(data.schema)
        assert encoder.cells == ("text", "integer")
        tokens = [
            value_tokens(rows.column(n).combine_chunks(), kind, n)  # type: ignore[arg-type]
            for n, kind in zip("sn", encoder.cells, strict=True)
        ]
        ids = encoder(torch.from_numpy(np.stack(tokens, 1)), torch.arange(2))
        assert torch.equal(ids, expected)


def test_ids() -> None:
    values = pa.array(["a", None, "bc", "", "a"])
    ids = Hashing(size=1000, seed=3).ids(values, 0)
    assert ids[0] == ids[4] != ids[2]
    assert ids[[1, 3]].tolist() == [0, 0]
    assert Hashing().ids(pa.array([], pa.string()), 0).tolist() == []
    assert Hashing(size=1000, seed=4).ids(values, 0).tolist() != ids.tolist()
    assert Hashing(size=1000, seed=3).ids(values, 1).tolist() != ids.tolist()


def test_hashes_spread() -> None:
    ids = Hashing(size=101).ids(pa.array([f"{n:08x}" for n in range(100_000)]), 0)
    counts = np.bincount(ids, minlength=101)[1:]
    assert counts.min() > 1000 - 5 * 32
    assert counts.max() < 1000 + 5 * 32
    whole = Hashing().ids(pa.array([str(n) for n in range(100_000)]), 0)
    assert len(np.unique(whole)) == len(whole)


def test_recipes_keep_the_hash() -> None:
    recipe = Recipe(label="y", columns=[Column(name="a")], hashing=Hashing(size=9, seed=4))
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "hashing" not in Recipe(label="y", columns=[Column(name="a")]).to_json()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(DataError, match="size must be in 2"):
        Hashing(size=1)
    with pytest.raises(DataError, match="seed must be in 0"):
        Hashing(seed=-1)
    with pytest.raises(DataError, match="unknown setting 'sise'; did you mean 'size'"):
        Recipe.from_json('{"label": "y", "columns": [{"name": "a"}], "hashing": {"sise": 3}}')
    with pytest.raises(DataError, match="cannot be hashed"):
        Hashing().ids(pa.array([True]), 0)
    with pytest.raises(DataError, match="need a size of at most"):
        Recipe(label="y", columns=[Column(name="a", multi=True)], hashing=Hashing())
