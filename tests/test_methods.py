"""Every method against a plain re-statement of its formula, one id at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_hash import MASK, plain_bucket, plain_mix, plain_salts
from scipy import stats

import featemb as fe
from featemb.hashing import bucket, mix64, salts
from featemb.methods.hash import share_rows

SCHEMA = fe.Schema([fe.Feature("a", 300), fe.Feature("b", 40), fe.Feature("c", 3)])
IDS = torch.stack([torch.arange(60) * 5 % n for n in SCHEMA.cardinalities], dim=1)


@given(st.integers(0, MASK))
def test_mix64(x: int) -> None:
    signed = x - (1 << 64) if x >> 63 else x
    assert int(mix64(torch.tensor(signed))) & MASK == plain_mix(x)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**62), st.integers(1, 2**40))
def test_bucket(value: int, seed: int, size: int) -> None:
    salt = salts(torch.tensor(seed), 3)
    plain = plain_salts(seed, 3)
    assert [int(s) & MASK for s in salt] == plain
    assert int(bucket(torch.tensor(value), salt[2], size)) == plain_bucket(value, plain[2], size)


@pytest.mark.parametrize("ids", [torch.arange(40_000), torch.arange(40_000) * 4096 + 7])
def test_rows_are_uniform_and_lookups_independent(ids: torch.Tensor) -> None:
    salt = salts(torch.tensor(5), 2)
    first, second = (bucket(ids, one, 20) for one in salt)
    for rows in (first, second):
        assert stats.chisquare(np.bincount(rows.numpy(), minlength=20)).pvalue > 1e-3
    joint = np.bincount((first * 20 + second).numpy(), minlength=400)
    assert stats.chisquare(joint).pvalue > 1e-3


def test_full_is_the_plain_table() -> None:
    layer = fe.embedding(SCHEMA, "full", dim=4)
    table = layer.source.rows.weight
    out = layer(IDS).view(-1, 3, 4)
    starts = (0, 300, 340)
    for b, row in enumerate(IDS.tolist()):
        for f, value in enumerate(row):
            assert torch.equal(out[b, f], table[starts[f] + value])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_hash_is_its_formula(power: float) -> None:
    layer = fe.embedding(SCHEMA, f"hash(rows=90, power={power})", dim=4, seed=11)
    table = layer.source.rows.weight
    sizes = share_rows(SCHEMA.cardinalities, 90, power)
    salt = plain_salts(11, 3)
    out = layer(IDS).view(-1, 3, 4)
    for b, row in enumerate(IDS.tolist()):
        start = 0
        for f, value in enumerate(row):
            whole = sizes[f] == SCHEMA.cardinalities[f]
            inside = value if whole else plain_bucket(value, salt[f], sizes[f])
            assert torch.equal(out[b, f], table[start + inside])
            start += sizes[f]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12),
    st.floats(0, 1),
    st.integers(1, 40_000),
)
def test_rows_are_shared_by_the_rule(cards: list[int], power: float, rows: int) -> None:
    rows = max(rows, len(cards))
    sizes = share_rows(cards, rows, power)
    assert sum(sizes) == min(rows, sum(cards))
    assert all(1 <= size <= n for size, n in zip(sizes, cards, strict=True))
    by_size = sorted(zip(cards, sizes, strict=True))
    assert all(later[1] >= sooner[1] - 1 for sooner, later in pairwise(by_size))
    # one lambda serves all features that are neither whole nor at the least row
    between = [(n, m) for n, m in zip(cards, sizes, strict=True) if 2 <= m < n]
    low = max(((m - 1) / n**power for n, m in between), default=0.0)
    high = min(((m + 1) / n**power for n, m in between), default=np.inf)
    assert low <= high * (1 + 1e-9)


def test_unified_is_its_formula() -> None:
    spec = "unified(rows=50, lookups=2, per_feature={b: 3}, collisionless=3)"
    layer = fe.embedding(SCHEMA, spec, dim=8, seed=4)
    assert layer.widths == (8, 12, 8)
    table = layer.source.rows.weight
    assert table.shape == (50 + 3 * 2, 4)
    salt = plain_salts(4, 9)
    out = layer(IDS)
    for b, row in enumerate(IDS.tolist()):
        wanted = []
        for f, (value, lookups) in enumerate(zip(row, (2, 3, 2), strict=True)):
            for number in range(lookups):
                shared = plain_bucket(value, salt[f * 3 + number], 50)
                wanted.append(table[50 + value * 2 + number if f == 2 else shared])
        assert torch.equal(out[b], torch.cat(wanted))


def test_unified_takes_any_id_of_an_unbounded_feature() -> None:
    schema = fe.Schema([fe.Feature("url")])
    layer = fe.embedding(schema, "unified(lookups=2)", dim=8, budget="4kB")
    assert layer.memory().serving <= 4000
    with pytest.raises(fe.SchemaError, match="unbounded"):
        fe.embedding(schema, "full", dim=8)
    with pytest.raises(fe.ConfigError, match="rows or a budget"):
        fe.embedding(schema, "unified", dim=8)


def test_lookups_must_divide_the_width() -> None:
    with pytest.raises(fe.ConfigError, match="dim=16, lookups=3"):
        fe.embedding(SCHEMA, "unified(lookups=3)", dim=16)


def test_hash_needs_a_row_a_feature() -> None:
    with pytest.raises(fe.ConfigError, match="rows"):
        fe.embedding(SCHEMA, "hash(rows=2)", dim=16)
