"""Schemas and the input forms of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import featemb as fe
from featemb.check.case import BAGS, bags

SCHEMA = fe.Schema([fe.Feature("a", 30), fe.Feature("b", 4)])

features = st.builds(
    fe.Feature,
    name=st.text(min_size=1),
    cardinality=st.none() | st.integers(1, 2**50),
    multi=st.booleans(),
    pooling=st.sampled_from(["sum", "mean", "max"]),
    max_length=st.none() | st.integers(1, 100),
)


@given(st.lists(features, min_size=1, unique_by=lambda feature: feature.name))
def test_schemas_read_back(entries: list[fe.Feature]) -> None:
    schema = fe.Schema(entries)
    assert fe.Schema.from_json(schema.to_json()) == schema


def test_counts_travel_with_the_schema() -> None:
    schema = SCHEMA.with_counts({"b": [4, 3, 2, 1]})
    again = fe.Schema.from_json(schema.to_json())
    assert np.array_equal(again.features[1].counts, [4, 3, 2, 1])
    assert again.without_counts().features[1].counts is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fe.Schema([]), "at least one"),
        (lambda: fe.Schema([fe.Feature("a", 1), fe.Feature("a", 2)]), "'a' appears twice"),
        (lambda: fe.Feature("a", 0), "'a': cardinality"),
        (lambda: fe.Feature("a", 2.5), "'a': cardinality"),
        (lambda: fe.Feature("a", True), "'a': cardinality"),
        (lambda: fe.Feature("a", 3, pooling="men"), "did you mean 'mean'"),
        (lambda: fe.Feature("a", 3, counts=[1, 2]), "shape"),
        (lambda: fe.Feature("a", 2, counts=[1, -2]), ">= 0"),
        (lambda: fe.Feature(""), "non-empty"),
        (lambda: fe.Schema.from_json("{"), "JSON"),
        (lambda: fe.Schema.from_json('{"features": [{"name": "a", "card": 3}]}'), "'card'"),
        (lambda: SCHEMA.index("bb"), "did you mean 'b'"),
    ],
)
def test_wrong_schemas_are_named(make: Any, words: str) -> None:
    with pytest.raises(fe.SchemaError, match=words):
        make()


def test_keyed_jagged_tensors_are_taken_as_they_are() -> None:
    sparse = pytest.importorskip("torchrec.sparse.jagged_tensor")
    ids = bags(6)
    layer = fe.embedding(BAGS, "unified(lookups=2)", dim=8, ratio=2)
    lengths = ids.lengths.view(4, -1)
    chunks = list(torch.split(ids.values, lengths.sum(1).tolist()))
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        keyed = sparse.KeyedJaggedTensor(
            keys=[BAGS.names[f] for f in order],
            values=torch.cat([chunks[f] for f in order]),
            lengths=lengths[order].reshape(-1),
        )
        assert torch.equal(layer(keyed), layer(ids))
    named = {name: (chunks[f], lengths[f]) for f, name in enumerate(BAGS.names)}
    assert torch.equal(layer(named), layer(ids))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"a": torch.tensor([1])}, "missing"),
        ({"a": torch.tensor([1]), "c": torch.tensor([1])}, "unknown feature 'c'"),
        ({"a": torch.tensor([1]), "b": torch.tensor([1, 2])}, "2 samples"),
        ({"a": torch.tensor([[1]]), "b": torch.tensor([1])}, "one axis"),
        ({"a": [1], "b": torch.tensor([1])}, "'a'"),
        ({"a": (torch.tensor([1, 2]), torch.tensor([1])), "b": torch.tensor([1])}, "sum to 1"),
        (fe.Jagged(torch.tensor([1, 2]), torch.tensor([1, 1, 1])), "F=2"),
        (fe.Jagged(torch.tensor([1, 2, 3]), torch.tensor([2, 1])), "single-valued"),
        (fe.Jagged(torch.tensor([1]), torch.tensor([2, -1])), ">= 0"),
        (torch.tensor([[True, False]]), "int64"),
    ],
)
def test_wrong_ids_are_named(ids: Any, words: str) -> None:
    with pytest.raises(fe.SchemaError, match=words):
        fe.embedding(SCHEMA, "full")(ids)


def test_values_never_move_to_another_feature() -> None:
    schema = fe.Schema([fe.Feature("t", 9, multi=True), fe.Feature("g", 9, multi=True)])
    layer = fe.embedding(schema, "full", dim=4)
    wrong = {
        "t": (torch.tensor([1, 2, 3]), torch.tensor([1, 1])),
        "g": (torch.tensor([], dtype=torch.int64), torch.tensor([1, 0])),
    }
    with pytest.raises(fe.SchemaError, match="'t'"):
        layer(wrong)
