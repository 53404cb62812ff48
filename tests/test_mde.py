"""Widths of mixed dimension embeddings and of the rule by field size, against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import featemb as fe
from featemb.layer import BuildContext, FeatureEmbedding
from featemb.parts import Split
from featemb.parts.projected import Widened

CARDINALITIES = (20_000, 3_000, 500, 60)
DIM = 16


def schema_of(**counts: np.ndarray) -> fe.Schema:
    return fe.Schema(
        fe.Feature(f"f{i}", n, counts=counts.get(f"f{i}")) for i, n in enumerate(CARDINALITIES)
    )


def widths_of(layer: FeatureEmbedding) -> tuple[list[int], int | None]:
    """Each feature's width by its table, and the feature of which some ids have one more."""
    source, extra = layer.source, None
    if isinstance(source, Widened):
        source, extra = source.base, source.feature
    parts = list(source.sources) if isinstance(source, Split) else [source]
    which = source.which if isinstance(source, Split) else (0,) * len(CARDINALITIES)
    return [parts[number].rows.weight.shape[1] for number in which], extra


def plan(spec: str, schema: fe.Schema | None = None, **size: float) -> FeatureEmbedding:
    return fe.embedding(schema or schema_of(), spec, dim=DIM, device="meta", **size)


def rounded(number: float) -> int:
    return min(DIM, max(1, math.floor(number + 0.5)))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.6])
def test_a_given_exponent_gives_the_papers_widths(alpha: float) -> None:
    found, extra = widths_of(plan(f"mde(alpha={alpha})"))
    assert found == [rounded(DIM * (60 / n) ** alpha) for n in CARDINALITIES]
    assert extra is None


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6])
def test_powers_of_two(alpha: float) -> None:
    found, _ = widths_of(plan(f"mde(alpha={alpha}, rounding=true)"))
    raw = [DIM * (60 / n) ** alpha for n in CARDINALITIES]
    assert found == [max(1, 2 ** math.floor(math.log2(one) + 0.5)) for one in raw]


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 8])
def test_a_limit_lies_between_two_exponents(ratio: float) -> None:
    """Some exponent gives the widths, but for features about to be widened."""
    found, extra = widths_of(plan("mde", ratio=ratio))
    assert extra is not None
    alphas = np.linspace(0, 3, 30_001)
    rows = {tuple(rounded(DIM * (60 / n) ** a) for n in CARDINALITIES) for a in alphas}
    assert tuple(found) in rows


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 8])
def test_a_limit_with_an_exponent_solves_the_base_width(ratio: float) -> None:
    found, _ = widths_of(plan("mde(alpha=0.3)", ratio=ratio))
    bases = np.linspace(0, 200, 40_001)
    rows = {tuple(rounded(b * (60 / n) ** 0.3) for n in CARDINALITIES) for b in bases}
    assert tuple(found) in rows


def test_counts_make_features_of_many_values_popular() -> None:
    counts = {f"f{i}": np.full(n, 10) for i, n in enumerate(CARDINALITIES)}
    counts["f1"] = np.full(3_000, 1_000)
    found, _ = widths_of(plan("mde(alpha=0.3, popularity=counts)", schema_of(**counts)))
    popularity = [float(counts[f"f{i}"].sum()) / n for i, n in enumerate(CARDINALITIES)]
    assert found == [rounded(DIM * (p / 1_000) ** 0.3) for p in popularity]


def test_features_without_counts_are_average() -> None:
    counts = {"f0": np.full(20_000, 2), "f1": np.full(3_000, 20)}
    config = fe.parse("mde(popularity=counts)").method
    average = (40_000 + 60_000) / 2
    rows = [20_000 / 40_000, 3_000 / 60_000, 500 / average, 60 / average]
    assert config.rarity(schema_of(**counts)) == pytest.approx([one / min(rows) for one in rows])


def test_only_the_most_frequent_ids_are_wider() -> None:
    layer = plan("mde", ratio=6)
    assert isinstance(layer.source, Widened)
    assert layer.source.hot.first == (0,)
    assert layer.source.hot.size[0] == layer.source.columns.weight.shape[0]


@pytest.mark.parametrize("coefficient", [0.5, 0.9, 1.2])
def test_field_size_follows_the_fourth_root(coefficient: float) -> None:
    found, extra = widths_of(plan(f"field_size(coefficient={coefficient})"))
    assert found == [rounded(coefficient * n**0.25) for n in CARDINALITIES]
    assert extra is None


def test_the_rule_of_thumb_is_above_these_widths() -> None:
    assert widths_of(plan("field_size(coefficient=6)"))[0] == [DIM] * 4
    assert widths_of(plan("field_size(coefficient=6, power=0.0)"))[0] == [6] * 4


@pytest.mark.parametrize("ratio", [1.5, 2, 4, 8])
def test_field_size_meets_a_limit_by_its_coefficient(ratio: float) -> None:
    found, _ = widths_of(plan("field_size", ratio=ratio))
    bases = np.linspace(0, 8, 80_001)
    rows = {tuple(rounded(c * n**0.25) for n in CARDINALITIES) for c in bases}
    assert tuple(found) in rows
    assert found == sorted(found, reverse=True)


def test_a_coefficient_is_the_largest_one() -> None:
    tight, loose = plan("field_size(coefficient=1.2)", ratio=4), plan("field_size", ratio=4)
    assert widths_of(tight) == widths_of(loose)
    assert plan("field_size(coefficient=0.5)", ratio=2).memory().serving < 150_000 * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mde(alpha=-0.1)", "alpha"),
        ("mde(popularity=mine)", "popularity"),
        ("mde(limit=0)", "limit"),
        ("field_size(coefficient=0.0)", "coefficient"),
        ("field_size(power=2.0)", "power"),
    ],
)
def test_bad_settings_are_named(spec: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(spec)


def test_a_limit_below_the_floor_tells_it() -> None:
    config = fe.parse("mde(limit=99)").method
    with pytest.raises(fe.BudgetError, match="mde at width 16 needs at least") as error:
        config.build(BuildContext(schema_of(), DIM, 0, torch.device("cpu")))
    assert error.value.floor == 4 * (sum(CARDINALITIES) + 4 * DIM)
