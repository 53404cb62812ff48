"""Batches: every row once, decided by seed and epoch, in the form that layers take."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb.datasets import Bag, Split
from featemb.errors import ConfigError
from featemb.ids import Jagged


def dense(rows: int = 103, features: int = 3) -> Split:
    ids = torch.arange(rows * features, dtype=torch.int32).view(rows, features)
    label = (torch.arange(rows) % 2).float()
    return Split(label, ids, numeric=torch.arange(rows).float()[:, None], user=torch.arange(rows))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 10, 103, 1000])
def test_batches_cover_each_row_once(shuffle: bool, batch_size: int) -> None:
    split = dense()
    batches = list(split.batches(batch_size, shuffle=shuffle, seed=1, epoch=2))
    assert all(len(batch.label) <= batch_size for batch in batches)
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.dtype == torch.int64
    rows = ids[:, 0] // 3
    assert sorted(rows.tolist()) == list(range(103))
    assert (rows.tolist() == list(range(103))) == (not shuffle)
    assert torch.equal(torch.cat([batch.numeric for batch in batches])[:, 0].long(), rows)
    assert torch.equal(torch.cat([batch.label for batch in batches]).long(), rows % 2)


def test_order_is_decided_by_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        batches = dense().batches(20, shuffle=True, seed=seed, epoch=epoch)
        return torch.cat([batch.ids[:, 0] for batch in batches]).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_batch_size_must_be_a_positive_integer(size: int) -> None:
    with pytest.raises(ConfigError, match="batch_size must be a positive integer"):
        dense().batches(size)


BAGS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4)), min_size=1, max_size=30
)


@settings(deadline=None, max_examples=60)
@given(rows=BAGS, batch_size=st.integers(1, 12), epoch=st.integers(0, 3))
def test_jagged_batches_hold_the_bags(
    rows: list[tuple[int, list[int]]], batch_size: int, epoch: int
) -> None:
    lengths = torch.tensor([len(bag) for _, bag in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.tensor([i for _, bag in rows for i in bag], dtype=torch.int32)
    single = Bag(torch.tensor([i for i, _ in rows], dtype=torch.int32), torch.arange(len(rows) + 1))
    split = Split(torch.arange(len(rows)).float(), None, [single, Bag(values, offsets)])
    seen = []
    for batch in split.batches(batch_size, shuffle=True, seed=5, epoch=epoch):
        assert isinstance(batch.ids, Jagged)
        size = len(batch.label)
        assert batch.ids.values.dtype == batch.ids.lengths.dtype == torch.int64
        first, second = batch.ids.lengths.view(2, size)
        chunks = torch.split(batch.ids.values, [*first.tolist(), *second.tolist()])
        for b, row in enumerate(batch.label.long().tolist()):
            assert (int(chunks[b]), chunks[size + b].tolist()) == rows[row]
            seen.append(row)
    assert sorted(seen) == list(range(len(rows)))
    taken = split.take(torch.arange(len(rows)).flip(0))
    assert taken.bags[1].values.tolist() == [i for _, bag in rows[::-1] for i in bag]


def test_a_layer_takes_both_forms() -> None:
    schema = fe.Schema([fe.Feature("a", 10), fe.Feature("b", 10, multi=True, pooling="mean")])
    bag = Bag(torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 3]))
    single = Bag(torch.tensor([4, 5, 6], dtype=torch.int32), torch.arange(4))
    (batch,) = Split(torch.zeros(3), None, [single, bag]).batches(3)
    assert fe.embedding(schema, "full", dim=4)(batch.ids).shape == (3, 8)
    plain = fe.Schema([fe.Feature(name, 309) for name in "abc"])
    (batch,) = dense().batches(103)
    assert fe.embedding(plain, "full", dim=4)(batch.ids).shape == (103, 12)


def test_batches_cost_little() -> None:
    """An epoch of 591,210 rows in batches of 1024, as MovieLens-1M has: far below training."""
    ids = torch.zeros(591_210, 6, dtype=torch.int32)
    split = Split(torch.zeros(len(ids)), ids)
    began = time.process_time()
    rows = sum(len(batch.label) for batch in split.batches(1024, shuffle=True))
    assert rows == 591_210
    assert time.process_time() - began < 1.5
