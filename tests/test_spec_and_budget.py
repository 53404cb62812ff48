"""The text grammar and byte budgets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from public_sizes import SCHEMAS

import featemb as fe
from featemb.budget import parse_bytes
from featemb.codecs.base import codec_by_name
from featemb.methods.hash import Hash
from featemb.methods.unified import Unified

CODECS = st.sampled_from(["", "+fp16", "+int8", "+int4", "+int2"])
# distinct values of Criteo Kaggle's 26 fields

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


@settings(deadline=None)
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
        ("unified(lookups=2)+hash", ["unified + hash", "both decide the address"]),
        ("int8", ["'int8'", "method", "codec"]),
        ("full+int8+int4", ["'int8'", "last item"]),
        ("full+int8+hash", ["'int8'", "last item"]),
        ("magnitude+qr", ["qr decides the address", "before magnitude"]),
        ("full+magnitude", ["full leaves every id its own row"]),
        ("cafe+magnitude", ["cafe moves rows"]),
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
    schema = SCHEMAS["criteo"]
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


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 9), min_size=1))
def test_any_feature_name_can_be_written(counts: dict[str, int]) -> None:
    spec = fe.Spec(Unified(per_feature=counts))
    assert fe.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["hash(rows=1__0)", "hash(power=1_.5)", 'unified(per_feature={"a\\q": 2})', "hash(rows"]
)
def test_values_that_cannot_be_read_are_setting_errors(text: str) -> None:
    with pytest.raises(fe.ConfigError, match="cannot read"):
        fe.parse(text)


@given(st.text("hash(rows=19_)+{}:,. \"'\\int8-e", max_size=30))
def test_no_text_escapes_the_error_of_settings(text: str) -> None:
    try:
        spec = fe.parse(text)
    except fe.ConfigError:
        return
    assert fe.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["_5", "1__0", "5_", "1..5MB", "1e6"])
def test_sizes_that_cannot_be_read_are_setting_errors(text: str) -> None:
    with pytest.raises(fe.ConfigError, match="cannot read the budget"):
        parse_bytes(text)


def test_a_spec_of_another_kind_is_refused() -> None:
    for spec in (3, codec_by_name("int8")):
        with pytest.raises(fe.ConfigError, match="spec must be"):
            fe.embedding(fe.Schema([fe.Feature("a", 5)]), spec)  # type: ignore[arg-type]


def test_plans_of_unbounded_schemas_have_no_ratio() -> None:
    schema = fe.Schema([fe.Feature("url")])
    (row,) = fe.plan(schema, specs=["unified"], budget="4kB").to_dict("records")
    assert row["fits"]
    assert row["serving_bytes"] <= 4000
    assert row["ratio"] is None


def test_plans_have_all_columns_where_nothing_fits() -> None:
    frame = fe.plan(fe.Schema([fe.Feature("a", 50)]), budget=1)
    assert not frame["fits"].any()
    assert {"spec", "serving_bytes", "training_bytes", "ratio"} <= set(frame.columns)
    for method, floor in zip(frame["method"], frame["floor_bytes"], strict=True):
        layer = fe.embedding(fe.Schema([fe.Feature("a", 50)]), method, budget=int(floor))
        assert layer.memory().serving == floor


@pytest.mark.parametrize("spec", ["full", "hash", "unified(lookups=2)", "hash+int8", "full+int2"])
def test_the_floor_is_the_smallest_size(spec: str) -> None:
    schema = fe.Schema([fe.Feature("a", 500), fe.Feature("b", 20)])
    with pytest.raises(fe.BudgetError) as error:
        fe.embedding(schema, spec, budget=1)
    floor = error.value.floor
    assert fe.embedding(schema, spec, budget=floor).memory().serving == floor
    with pytest.raises(fe.BudgetError) as error:
        fe.embedding(schema, spec, budget=floor - 1)
    assert error.value.floor == floor


def test_knobs_that_share_a_byte_do_not_end_the_search() -> None:
    """One and two numbers of 4 bits take the same byte; wider rows still fit."""
    schema = fe.Schema([fe.Feature("user", 6041), fe.Feature("movie", 3707)])
    layer = fe.embedding(schema, "lowdim+int4", dim=32, ratio=10, device="meta")
    width = layer.config.width
    wider = fe.embedding(schema, f"lowdim(width={width + 1})+int4", dim=32, device="meta")
    limit = schema.full_bytes(32) / 10
    assert layer.memory().serving <= limit < wider.memory().serving
    assert width > 10


def test_sizes_that_grow_in_steps_are_solved() -> None:
    from featemb.budget import _largest

    for step in (1, 2, 3, 4):
        for limit in (3, 17, 100, 1001):
            assert (
                _largest(lambda knob, step=step: knob // step, 1, limit) == (limit + 1) * step - 1
            )
    assert _largest(lambda knob: min(knob, 37), 1, 50) >= 37
