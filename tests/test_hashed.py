"""Hashed ids against the documented formula, written out in Python integers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featemb.datasets import Column, Hashing, Recipe
from featemb.datasets.hashed import UNBOUNDED, hash64
from featemb.errors import DataError

WHOLE = (1 << 64) - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WHOLE
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WHOLE
    return x ^ (x >> 31)


def reference(data: bytes, seed: int) -> int:
    made = mix((seed + (len(data) + 1) * 0x9E3779B97F4A7C15) & WHOLE)
    for start in range(0, len(data), 8):
        word = data[start : start + 8].ljust(8, b"\0")
        made = mix(made ^ int.from_bytes(word, "little"))
    return made


@given(st.lists(st.text(), min_size=1), st.integers(0, UNBOUNDED), st.integers(0, 3))
def test_texts(texts: list[str], seed: int, skipped: int) -> None:
    values = pa.array([*["skipped"] * skipped, *texts]).slice(skipped)
    assert hash64(values, seed).tolist() == [reference(text.encode(), seed) for text in texts]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers(numbers: list[int]) -> None:
    expected = [reference((n % 2**64).to_bytes(8, "little"), 7) for n in numbers]
    assert hash64(pa.array(numbers, pa.int64()), 7).tolist() == expected


def test_fractions_and_signed_zero() -> None:
    expected = [reference(np.float64(x).tobytes(), 0) for x in (1.5, 0.0, 0.0)]
    assert hash64(pa.array([1.5, 0.0, -0.0])).tolist() == expected


@pytest.mark.parametrize("size", [None, 2, 1000])
def test_ids(size: int | None) -> None:
    values = pa.array(["a", None, "bc", "a"])
    ids = Hashing(size=size, seed=3).ids(values)
    space = (size or 2**63 - 1) - 1
    a, bc = (1 + reference(text, 3) % space for text in (b"a", b"bc"))
    assert ids.tolist() == [a, 0, bc, a]
    assert Hashing(size=size).ids(pa.array([], pa.string())).tolist() == []


def test_hashes_spread() -> None:
    ids = Hashing(size=101).ids(pa.array([f"{n:08x}" for n in range(100_000)]))
    counts = np.bincount(ids, minlength=101)[1:]
    assert counts.min() > 1000 - 5 * 32
    assert counts.max() < 1000 + 5 * 32
    whole = Hashing().ids(pa.array([str(n) for n in range(100_000)]))
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
        hash64(pa.array([True]))
    with pytest.raises(DataError, match="need a size of at most"):
        Recipe(label="y", columns=[Column(name="a", multi=True)], hashing=Hashing())
