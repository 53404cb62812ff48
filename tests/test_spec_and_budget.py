"""The text grammar and byte budgets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb.budget import parse_bytes
from featemb.codecs.base import codec_by_name
from featemb.methods.hash import Hash
from featemb.methods.unified import Unified

CODECS = st.sampled_from(["", "+fp16", "+int8", "+int4", "+int2"])
# distinct values of Criteo Kaggle's 26 fields
CRITEO = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194)
CRITEO += (27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)

specs = st.one_of(
    st.builds(
        Hash,
        rows=st.none() | st.integers(1, 10**9),
        power=st.floats(0, 1),
        init=st.floats(1e-9, 10),
    ),
    st.builds(
        Unified,
        rows=st.none() | st.integers(1, 10**9),
        lookups=st.integers(1, 8),
        per_feature=st.dictionaries(st.text("abcXYZ_ -", min_size=1), st.integers(1, 9)),
        collisionless=st.integers(0, 10**6),
    ),
)


@given(specs, st.sampled_from([None, "int8", "fp16"]))
def test_every_spec_reads_back(method: Any, codec: str | None) -> None:
    spec = fe.Spec(method, None if codec is None else codec_by_name(codec))
    assert fe.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unifed", ["'unified'"]),
        ("unified(lookup=2)", ["'lookup'", "'lookups'"]),
        ("unified(lookups=two)", ["lookups", "'two'"]),
        ("unified(lookups=0)", ["lookups", "at least 1"]),
        ("unified(lookups=2", ["expected", "the end"]),
        ("unified lookups=2)", ["'+' or the end"]),
        ("unified(lookups=2, lookups=3)", ["twice"]),
        ("unified(lookups=2)+hash", ["codec"]),
        ("int8", ["method", "codec"]),
        ("full+int8+int4", ["one codec"]),
        ("", ["expected the name"]),
        ("full(§)", ["position 5"]),
    ],
)
def test_errors_say_what_is_wrong(text: str, words: list[str]) -> None:
    with pytest.raises(fe.ConfigError) as error:
        fe.parse(text)
    assert all(word in str(error.value) for word in words), str(error.value)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(2, 5000), min_size=1, max_size=6),
    st.sampled_from(["hash", "unified", "unified(lookups=2)", "hash(power=1.0)"]),
    CODECS,
    st.floats(1.5, 200),
)
def test_budgets_are_met_from_below(cards: list[int], spec: str, codec: str, ratio: float) -> None:
    schema = fe.Schema(fe.Feature(f"f{n}", card) for n, card in enumerate(cards))
    limit = schema.full_bytes(16) / ratio
    try:
        layer = fe.embedding(schema, spec + codec, dim=16, ratio=ratio, device="meta")
    except fe.BudgetError as error:
        floor = error.floor
    else:
        floor = None
    if floor is not None:
        assert floor > limit
        fe.embedding(schema, spec + codec, dim=16, budget=floor, device="meta")
        return
    used = layer.memory().serving
    assert used <= limit
    largest = spec.startswith("hash") and sum(cards) <= layer.config.rows
    assert largest or used > limit - max(64, limit / 100)


@pytest.mark.parametrize("spec", ["hash", "unified(lookups=2)", "unified+int4"])
@pytest.mark.parametrize("ratio", [2, 10, 100, 1000, 10_000])
def test_criteo_size_plans_without_memory(spec: str, ratio: float) -> None:
    schema = fe.Schema(fe.Feature(f"C{n + 1}", card) for n, card in enumerate(CRITEO))
    layer = fe.embedding(schema, spec, dim=16, ratio=ratio, device="meta")
    limit = schema.full_bytes(16) / ratio
    assert limit - max(64, limit / 100) < layer.memory().serving <= limit


def test_plan_has_a_row_a_method() -> None:
    schema = fe.Schema([fe.Feature("a", 1000), fe.Feature("b", 10)])
    frame = fe.plan(schema, dim=16, ratio=10)
    assert list(frame["method"]) == fe.methods()
    by_method = frame.set_index("method")
    assert not by_method.loc["full", "fits"]
    assert by_method.loc["full", "floor_bytes"] == schema.full_bytes(16)
    layer = fe.embedding(schema, "hash", dim=16, ratio=10)
    optimizer = fe.optim.RowAdam(layer.parameters())
    optimizer.allocate()
    assert by_method.loc["hash", "training_bytes"] == layer.memory(optimizer).training


@pytest.mark.parametrize(
    ("text", "size"),
    [("2MB", 2_000_000), ("1.5 GB", 1_500_000_000), ("64KiB", 65_536), ("7", 7), (12, 12)],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "2 apples", "-1", 0, -5, "0", True])
def test_wrong_sizes_are_refused(text: Any) -> None:
    with pytest.raises(fe.ConfigError):
        parse_bytes(text)


def test_contradictions_are_refused() -> None:
    schema = fe.Schema([fe.Feature("a", 1000)])
    with pytest.raises(fe.ConfigError, match="not both"):
        fe.embedding(schema, "hash", ratio=2, budget="1kB")
    with pytest.raises(fe.ConfigError, match="by hand"):
        fe.embedding(schema, "hash(rows=10)", ratio=2)
    for bad in ({"dim": 0}, {"seed": -1}, {"ratio": 0}):
        with pytest.raises(fe.ConfigError):
            fe.embedding(schema, "hash", **bad)
