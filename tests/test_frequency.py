"""Which ids are frequent: against plain sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb import frequency
from featemb.frequency import effective_sizes, hot_ids, hot_sizes, hot_start
from featemb.parts.hot import HotBitmap, HotRange, count_bits, hot_rank

COUNTS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=150), min_size=1, max_size=4)
CPU = torch.device("cpu")


def schema_of(counts: list[list[int]]) -> fe.Schema:
    return fe.Schema(
        fe.Feature(f"f{n}", len(one), counts=np.array(one)) for n, one in enumerate(counts)
    )


def plain_hot(counts: list[list[int]], total: int) -> list[tuple[int, int]]:
    """The most frequent (feature, id), ties by feature and id; in order of feature and id."""
    pairs = [(-count, f, x) for f, one in enumerate(counts) for x, count in enumerate(one)]
    return sorted((f, x) for _, f, x in sorted(pairs)[:total])


@settings(deadline=None)
@given(COUNTS, st.integers(0, 700), st.sampled_from(["as they are", "sorted", "unknown first"]))
def test_private_ids_are_the_most_frequent(counts: list[list[int]], total: int, order: str) -> None:
    if order != "as they are":
        skip = order == "unknown first"
        counts = [one[:skip] + sorted(one[skip:], reverse=True) for one in counts]
    schema, hot = schema_of(counts), plain_hot(counts, total)
    sizes = hot_sizes(schema, total)
    assert sizes == tuple(sum(f == g for g, _ in hot) for f in range(len(counts)))
    part = hot_rank(schema, total, CPU)
    if order != "as they are":
        assert isinstance(part, HotRange)
    number = {pair: place for place, pair in enumerate(hot)}
    for f, one in enumerate(counts):
        ranks = part(torch.arange(len(one)), torch.full((len(one),), f))
        assert ranks.tolist() == [number.get((f, x), -1) for x in range(len(one))]


def test_planned_and_real_remaps_are_as_large() -> None:
    schema = schema_of([[1, 5, 2] * 50, [3, 1]])
    real, plan = (hot_rank(schema, 60, torch.device(name)) for name in ("cpu", "meta"))
    assert isinstance(real, HotBitmap)
    for one, other in zip(real.buffers(), plan.buffers(), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_bits_are_counted(numbers: list[int]) -> None:
    given_bits = count_bits(torch.tensor(numbers)).tolist()
    assert given_bits == [(one & (2**64 - 1)).bit_count() for one in numbers]


@settings(deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=8), st.integers(0, 400_000))
def test_without_counts_ids_are_taken_by_their_number(cards: list[int], total: int) -> None:
    schema = fe.Schema(fe.Feature(f"f{n}", card) for n, card in enumerate(cards))
    sizes = hot_sizes(schema, total)
    assert sum(sizes) == min(total, sum(cards))
    assert all(0 <= size <= n for size, n in zip(sizes, cards, strict=True))
    for feature, size in zip(schema.features, sizes, strict=True):
        assert hot_start(feature, size) == 0
        assert hot_ids(feature, size).tolist() == list(range(size))


def test_zipf_counts_rank_small_features_first() -> None:
    schema = fe.Schema([fe.Feature("large", 10**6), fe.Feature("small", 10)])
    assert hot_sizes(schema, 40) == (30, 10)
    harmonic = sum(1 / t for t in range(1, 11))
    # the tenth id of the small feature is as frequent as the t-th of the large one
    rank = 10 * harmonic / sum(1 / t for t in range(1, 10**6 + 1))
    assert hot_sizes(schema, 10)[0] == pytest.approx(rank * 10 / (rank + 10), abs=1.5)


def test_effective_sizes() -> None:
    flat = fe.Schema([fe.Feature("a", 50, counts=np.full(50, 3)), fe.Feature("b")])
    assert effective_sizes(flat) == pytest.approx((50, 50))
    n = 20_000
    share = 1 / np.arange(1, n + 1)
    share /= share.sum()
    truth = np.exp(-(share * np.log(share)).sum())
    (zipf,) = effective_sizes(fe.Schema([fe.Feature("a", n)]))
    assert zipf == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("method", ["frequency", "adapt", "double_hash"])
def test_counts_are_profiled_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    schema = fe.Schema(fe.Feature(name, n, counts=rng.integers(0, 1000, n)) for name in "ab")
    read = []
    monkeypatch.setattr(frequency, "_Profile", lambda **kw: read.append(kw) or made(**kw))
    layer = fe.embedding(schema, method, dim=16, ratio=10, device="meta")
    fe.embedding(schema, method, dim=16, ratio=11, device="meta")
    assert len(read) == 2  # one for each feature, though tens of layers were planned
    assert layer.memory().parts["remap"] == 12 * 2 * (n // 64)


made = frequency._Profile
