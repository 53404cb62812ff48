"""Plans: every method at a glance, for tables of any size."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

import featemb as fe

SMALL = fe.Schema([fe.Feature("a", 1000), fe.Feature("b", 10)])
HUGE = fe.Schema(
    fe.Feature(f"f{f}", n) for f, n in enumerate([10**9, 10**8, 10**7, 10**6] + [1000] * 22)
)


def test_a_billion_ids_take_neither_time_nor_memory() -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    frame = fe.plan(HUGE, dim=64, ratio=20)
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    assert grown < 1.0, f"{grown:.2f} GB"
    assert seconds < 200  # it takes about 20 on an idle core; a formula in O(N) takes hours
    limit = HUGE.full_bytes(64) / 20
    fitting = frame[frame.fits]
    assert len(fitting) > 25
    assert (fitting.serving_bytes <= limit).all()
    assert (fitting.serving_bytes > 0.9 * limit).all()
    assert (frame[~frame.fits].floor_bytes > limit).all()


def test_parts_sum_to_the_whole() -> None:
    frame = fe.plan(SMALL, dim=16, ratio=4, compositions=True)
    fitting = frame[frame.fits]
    assert len(fitting) > 60
    for row in fitting.itertuples():
        assert sum(row.serving_parts.values()) == row.serving_bytes
        assert sum(row.training_parts.values()) == row.training_bytes
        assert row.reason == ""


def test_compositions_are_those_with_fp32_rows() -> None:
    frame = fe.plan(SMALL, dim=16, ratio=4, specs=["hash", "lsq", "hash(rows=50)"])
    assert list(frame.method) == ["hash", "lsq", "hash(rows=50)"]
    frame = fe.plan(SMALL, dim=16, ratio=4, specs=["hash", "lsq"], compositions=True)
    assert list(frame.method) == ["hash", "lsq", "hash+int8", "hash+int4"]


def test_what_cannot_be_had_says_why() -> None:
    frame = fe.plan(SMALL, dim=15, ratio=4, specs=["full", "cce", "hash(rows=50)", "hash"])
    full, chunks, by_hand, _ = frame.itertuples()
    assert "needs at least 60,600 bytes" in full.reason
    assert full.floor_bytes == 60_600
    assert "chunks must divide dim" in chunks.reason
    assert "by hand" in by_hand.reason
    assert list(frame.fits) == [False, False, False, True]
    unbounded = fe.Schema([fe.Feature("url")])
    frame = fe.plan(unbounded, dim=8, budget="1MB", specs=["lowdim", "hash"])
    assert list(frame.fits) == [False, True]
    assert "url" in frame.reason[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specs": ["hsh"]}, "did you mean 'hash'"),
        ({"ratio": -1}, "ratio must be > 0"),
        ({"ratio": 2, "budget": "1MB"}, "not both"),
        ({"budget": "much"}, "cannot read the budget 'much'"),
        ({"dim": 0}, "dim must be a positive integer"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
    ],
)
def test_wrong_questions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.plan(SMALL, **arguments)


def test_the_optimizer_is_counted() -> None:
    def state(optimizer: str) -> int:
        frame = fe.plan(SMALL, dim=16, specs=["full"], optimizer=optimizer)
        return int(frame.training_parts[0].get("optimizer state", 0))

    table = SMALL.full_bytes(16)
    assert state("row_sgd") == 0
    assert table <= state("row_adagrad") < table + 100
    assert 2 * table <= state("row_adam") < 2 * table + 5000
    assert 2 * table <= state("dense_adam") < 2 * table + 100
