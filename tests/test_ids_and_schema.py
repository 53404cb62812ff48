"""Schemas and the input forms of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
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


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["sum", "mean", "max"]),
    st.lists(
        st.tuples(st.lists(st.integers(0, 8), max_size=4), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=5,
    ),
)
def test_bags_pool_as_a_loop_does(pooling: Any, samples: list[tuple[list[int], ...]]) -> None:
    schema = fe.Schema([fe.Feature("t", 9, multi=True), fe.Feature("u", 5, True, pooling)])
    layer = fe.embedding(schema, "full", dim=3)
    table = layer.source.rows.weight.detach()
    bags_of = [[sample[f] for sample in samples] for f in range(2)]
    lengths = torch.tensor([len(bag) for bags in bags_of for bag in bags])
    flat = [one for bags in bags_of for bag in bags for one in bag]
    out = layer(fe.Jagged(torch.tensor(flat, dtype=torch.int64), lengths))
    pools = {"sum": lambda v: v.sum(0), "mean": lambda v: v.mean(0), "max": lambda v: v.amax(0)}
    for b, sample in enumerate(samples):
        for f, (bag, rule) in enumerate(zip(sample, ("sum", pooling), strict=True)):
            vectors = table[torch.tensor([one + 9 * f for one in bag], dtype=torch.int64)]
            wanted = pools[rule](vectors) if bag else torch.zeros(3)
            assert torch.allclose(out[b, 3 * f : 3 * f + 3], wanted, atol=1e-6)


class Keyed:
    """What the layer asks of a KeyedJaggedTensor."""

    def __init__(self, keys: list[str], varies: bool = False) -> None:
        self.names, self.varies = keys, varies

    def keys(self) -> list[str]:
        return self.names

    def values(self) -> torch.Tensor:
        return torch.ones(len(self.names), dtype=torch.int64)

    def lengths(self) -> torch.Tensor:
        return torch.ones(len(self.names), dtype=torch.int64)

    def variable_stride_per_key(self) -> bool:
        return self.varies


def test_keyed_tensors_that_do_not_fit_are_named() -> None:
    layer = fe.embedding(SCHEMA, "full")
    assert torch.equal(layer(Keyed(["b", "a"])), layer(torch.tensor([[1, 1]])))
    with pytest.raises(fe.SchemaError, match="'a' appears twice"):
        layer(Keyed(["a", "b", "a"]))
    with pytest.raises(fe.SchemaError, match="another batch size a key"):
        layer(Keyed(["a", "b"], varies=True))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({1: torch.tensor([1]), "a": torch.tensor([1])}, "unknown feature 1"),
        ({"a": ([1], [1]), "b": ([1], [1])}, "must be tensors, got list"),
        ({"a": torch.tensor(1), "b": torch.tensor(1)}, "one axis"),
        (None, "got NoneType"),
        ([[1, 2]], "got list"),
    ],
)
def test_other_forms_are_named(ids: Any, words: str) -> None:
    with pytest.raises(fe.SchemaError, match=words):
        fe.embedding(SCHEMA, "full")(ids)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"features": [{"name": "a"}], "numeric": "xyz"}', "list of names"),
        ('{"features": [{"name": "a"}], "numeric": [3]}', "numeric column"),
        ('{"features": [{"name": "a", "multi": "no"}]}', "multi must be true or false"),
        ('{"features": [{"name": "a", "cardinality": 2, "counts": [[1], [2, 3]]}]}', "counts"),
        ('{"features": [{"name": "a"}, {"name": "b"}], "numeric": ["a"]}', "appears twice"),
        ('{"features": {}}', "list"),
        ('{"features": ["a"]}', "with a name"),
        ("[]", "object"),
    ],
)
def test_malformed_schema_texts_are_named(text: str, words: str) -> None:
    with pytest.raises(fe.SchemaError, match=words):
        fe.Schema.from_json(text)
