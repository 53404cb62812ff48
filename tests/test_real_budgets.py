"""Budgets at the cardinalities of the large public data sets; nothing here is allocated."""

from __future__ import annotations

import pytest
from cases import CASES
from public_sizes import AVAZU, CRITEO, KDD12, SCHEMAS

import featemb as fe
from featemb.methods.hash import share_rows
from featemb.methods.qr import balanced

SOLVED = [name for name in CASES if fe.parse(name).method.knob is not None]


def test_sums_are_the_published_ones() -> None:
    assert sum(CRITEO) == 33_762_577
    assert sum(AVAZU) == 9_449_445
    assert round(sum(KDD12), -6) == 56_000_000


@pytest.mark.parametrize("data", SCHEMAS)
@pytest.mark.parametrize("ratio", [2, 10, 100, 1000])
@pytest.mark.parametrize("method", SOLVED)
def test_a_budget_is_met_or_its_floor_told(method: str, ratio: int, data: str) -> None:
    schema = SCHEMAS[data]
    limit = schema.full_bytes(16) / ratio
    try:
        layer = fe.embedding(schema, method, dim=16, ratio=ratio, device="meta")
    except fe.BudgetError as error:
        floor = error.floor
    else:
        assert layer.memory().serving <= limit
        return
    assert floor > limit
    at_floor = fe.embedding(schema, method, dim=16, budget=floor, device="meta")
    assert at_floor.memory().serving == floor
    with pytest.raises(fe.BudgetError):
        fe.embedding(schema, method, dim=16, budget=floor - 1, device="meta")


EXACT = ("hash", "multi_hash", "double_hash", "unified", "qr", "robe", "adapt", "frequency")


@pytest.mark.parametrize("data", SCHEMAS)
@pytest.mark.parametrize("ratio", [2, 10, 100])
@pytest.mark.parametrize("method", EXACT)
def test_methods_of_rows_waste_nothing(method: str, ratio: int, data: str) -> None:
    layer = fe.embedding(SCHEMAS[data], method, dim=16, ratio=ratio, device="meta")
    limit = SCHEMAS[data].full_bytes(16) / ratio
    assert layer.memory().serving > limit - 26 * 4 * 16  # less than a row a feature


def floor_share(spec: str, data: str) -> float:
    """The smallest size of a method, as a share of the full table's."""
    with pytest.raises(fe.BudgetError) as error:
        fe.embedding(SCHEMAS[data], spec, dim=16, budget=1, device="meta")
    return error.value.floor / SCHEMAS[data].full_bytes(16)


@pytest.mark.parametrize(
    ("spec", "data", "share"),
    [
        ("qr", "criteo", 0.00085),
        ("qr", "avazu", 0.00101),
        ("qr(partitions=3)", "criteo", 0.00011),
        ("qr(partitions=3)", "avazu", 0.00015),
        ("lowdim", "criteo", 1 / 16),
        ("memcom", "criteo", 1 / 16),
    ],
)
def test_floors_are_those_of_the_literature(spec: str, data: str, share: float) -> None:
    assert floor_share(spec, data) == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize("spec", ["hash", "unified", "robe", "multi_hash", "adapt", "frequency"])
def test_hashed_methods_go_down_to_rows_a_feature(spec: str) -> None:
    assert floor_share(spec, "criteo") < 1e-6


def test_one_collision_number_for_all_features_cannot_go_as_low() -> None:
    """The study's solver shares one c over all features: .00138 of the table on Criteo."""
    least = min(
        sum(min(n, -(-n // c) + c) for n in CRITEO) / sum(CRITEO) for c in range(100, 4000, 7)
    )
    assert least == pytest.approx(0.00138, rel=0.01)
    assert sum(min(n, sum(balanced(n, 2))) for n in CRITEO) / sum(CRITEO) < 0.62 * least


@pytest.mark.parametrize("ratio", [10, 100])
def test_small_features_of_criteo_stay_whole(ratio: int) -> None:
    sizes = share_rows(CRITEO, sum(CRITEO) // ratio, 0.5)
    small = {n: size for n, size in zip(CRITEO, sizes, strict=True) if n < 110}
    assert all(size == n for n, size in small.items())
