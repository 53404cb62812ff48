"""`tt`: a tensor train against the whole table, multiplied out one id at a time."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from public_sizes import SCHEMAS

import featemb as fe
from featemb.methods.tt import balanced_factors, row_factors, train_size
from featemb.parts import Split
from featemb.parts.tensor_train import HotLookup, TensorTrain, tiles

SCHEMA = fe.Schema([fe.Feature("a", 300), fe.Feature("b", 40), fe.Feature("c", 3)])
BIG = fe.Schema([fe.Feature("a", 20_000), fe.Feature("b", 8_000)])


def train_of(layer: fe.FeatureEmbedding) -> TensorTrain:
    source = layer.source
    if isinstance(source, Split):
        source = source.sources[0]
    if isinstance(source, HotLookup):
        source = source.cold
    assert isinstance(source, TensorTrain)
    return source


def plain_table(train: TensorTrain, cards: list[int], dim: int) -> list[np.ndarray]:
    """The tables of all compressed features: every digit of rows and columns spelled out."""
    cores = [core.weight.detach().double().numpy() for core in train._cores()]
    count, rank = len(cores), train.rank
    shapes = [row_factors(n, count) for n in cards]
    factors = balanced_factors(dim, count)
    ranks = (1, *(rank,) * (count - 1), 1)
    tables = []
    for f, n in enumerate(cards):
        table = np.zeros((n, dim))
        for x in range(n):
            left, chain = x, np.ones((1, 1))
            for k in range(count):
                digit, left = left % shapes[f][k], left // shapes[f][k]
                row = sum(shape[k] for shape in shapes[:f]) + digit
                core = cores[k][row].reshape(ranks[k], factors[k], ranks[k + 1])
                chain = np.einsum("cr,rqs->cqs", chain, core).reshape(-1, ranks[k + 1])
            assert left == 0
            table[x] = chain[:, 0]
        tables.append(table)
    return tables


@pytest.mark.parametrize("dim", [1, 7, 16, 30])
@pytest.mark.parametrize("spec", ["tt(rank=3)", "tt(rank=2, cores=4)", "tt(rank=2, cores=2)"])
def test_it_is_its_formula(spec: str, dim: int) -> None:
    layer = fe.embedding(SCHEMA, spec, dim=dim, seed=3)
    compressed = [n for n in SCHEMA.cardinalities if n * dim > _cost(layer, n, dim)]
    tables = plain_table(train_of(layer), compressed, dim)
    for f, n in enumerate(SCHEMA.cardinalities):
        ids = torch.zeros(n, 3, dtype=torch.int64)
        ids[:, f] = torch.arange(n)
        if n in compressed:
            wanted = tables[compressed.index(n)]
        else:
            rows = layer.source.sources[1].rows.weight.detach()
            first = sum(m for m in SCHEMA.cardinalities[:f] if m not in compressed)
            wanted = rows[first : first + n].numpy()
        for mode in (True, False):
            out = layer.train(mode)(ids).view(n, 3, dim)[:, f].detach().numpy()
            np.testing.assert_allclose(out, wanted, atol=1e-6)


def _cost(layer: fe.FeatureEmbedding, n: int, dim: int) -> int:
    """The sum of ``p_k r_{k-1} q_k r_k``, spelled out."""
    rank, cores = layer.config.rank, layer.config.cores
    p, q = row_factors(n, cores), balanced_factors(dim, cores)
    inner = sum(p[k] * q[k] * rank * rank for k in range(1, cores - 1))
    return p[0] * q[0] * rank + inner + p[-1] * q[-1] * rank


@pytest.mark.parametrize("rank", [1, 3, 9, 200])
@pytest.mark.parametrize("cores", [2, 3, 4])
def test_bytes_are_the_formula(cores: int, rank: int) -> None:
    layer = fe.embedding(SCHEMA, f"tt(rank={rank}, cores={cores})", dim=16)
    wanted = sum(min(n * 16, _cost(layer, n, 16)) for n in SCHEMA.cardinalities)
    assert layer.memory().serving == 4 * wanted
    assert layer.memory().parts == {"rows": 4 * wanted}


def test_columns_are_split_as_evenly_as_can_be() -> None:
    shapes = {
        16: (2, 2, 4),
        32: (2, 4, 4),
        64: (4, 4, 4),
        30: (2, 3, 5),
        7: (1, 1, 7),
        1: (1, 1, 1),
    }
    assert {dim: balanced_factors(dim, 3) for dim in shapes} == shapes
    for dim, cores in product(range(1, 65), (2, 3, 4)):
        assert prod(balanced_factors(dim, cores)) == dim


@given(st.integers(1, 2**40), st.sampled_from([2, 3, 4]))
def test_rows_are_enough(n: int, cores: int) -> None:
    shape = row_factors(n, cores)
    assert prod(shape) >= n
    assert list(shape) == sorted(shape)
    assert (shape[-1] - 1) ** cores < n <= shape[-1] ** cores


@pytest.mark.parametrize(
    ("data", "ratio", "rank"),
    [
        *(("criteo", 2, 376), ("criteo", 10, 157), ("criteo", 100, 46), ("criteo", 1000, 13)),
        *(("avazu", 2, 336), ("avazu", 10, 147), ("avazu", 100, 40), ("avazu", 1000, 11)),
    ],
)
def test_ranks_of_the_public_benchmark(data: str, ratio: int, rank: int) -> None:
    layer = fe.embedding(SCHEMAS[data], "tt", dim=16, ratio=ratio, device="meta")
    assert layer.config.rank == rank


def test_ranks_have_no_upper_bound() -> None:
    schema = fe.Schema([fe.Feature("a", 200_000_000), fe.Feature("b", 100_000_000)])
    layer = fe.embedding(schema, "tt", dim=16, ratio=2, device="meta")
    assert layer.config.rank > 1000
    limit = schema.full_bytes(16) / 2
    assert limit * 0.99 < layer.memory().serving <= limit


@pytest.mark.parametrize("cores", [2, 4])
def test_other_numbers_of_cores_meet_budgets(cores: int) -> None:
    for schema in SCHEMAS.values():
        for ratio in (2, 10, 100):
            limit = schema.full_bytes(16) / ratio
            layer = fe.embedding(schema, f"tt(cores={cores})", dim=16, ratio=ratio, device="meta")
            assert 0.9 * limit < layer.memory().serving <= limit


def test_default_is_a_tenth() -> None:
    layer = fe.embedding(BIG, "tt", dim=16)
    used = layer.memory().serving * 10 / BIG.full_bytes(16)
    assert 0.8 < used <= 1


def test_floor_is_told() -> None:
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(SCHEMA, "tt", dim=16, budget=100)
    layer = fe.embedding(SCHEMA, "tt", dim=16, budget=caught.value.floor)
    assert layer.config.rank == 1
    assert layer.memory().serving == caught.value.floor


@pytest.mark.parametrize(
    "spec", ["tt(rank=1)", "tt(rank=12)", "tt(rank=20, cores=2)", "tt(rank=4, cores=4)"]
)
def test_vectors_start_at_the_dense_scale(spec: str) -> None:
    layer = fe.embedding(BIG, spec, dim=16, seed=1).eval()
    ids = torch.stack([torch.arange(8_000) * 2, torch.arange(8_000)], 1)
    with torch.no_grad():
        std = float(layer(ids).std())
    assert abs(std / (0.05 / 3**0.5) - 1) < 0.1


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 5))
@settings(deadline=None)
def test_tiles_hold_one_row(rows: list[int], size: int) -> None:
    given_rows = torch.tensor(rows, dtype=torch.int64)
    of_tile, place = tiles(given_rows, 10, size)
    assert torch.equal(of_tile[place // size], given_rows)
    assert len(set(place.tolist())) == len(rows)
    counts = np.bincount(rows, minlength=10) if rows else np.zeros(10, int)
    assert len(of_tile) == sum(-(-int(count) // size) for count in counts)


def test_training_and_eval_have_the_same_gradients() -> None:
    layer = fe.embedding(SCHEMA, "tt(rank=5)", dim=16).double()
    ids = torch.stack([torch.arange(64) ** 2 % n for n in SCHEMA.cardinalities], 1)
    weight = torch.linspace(-1, 1, 48, dtype=torch.float64)
    grads = []
    for mode in (True, False):
        layer.zero_grad()
        (layer.train(mode)(ids).tanh() @ weight).sum().backward()
        grads.append([parameter.grad.clone() for parameter in layer.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_cached_ids_have_rows_of_their_own() -> None:
    counts = {"a": np.arange(300)[::-1].copy() + 5, "b": np.full(40, 1), "c": np.ones(3, int)}
    counts["a"][77] = 10_000
    counts["b"][31] = 9_000
    layer = fe.embedding(SCHEMA, "tt(rank=2, cache=3)", dim=16, counts=counts)
    source = layer.source  # at rank 2 even the third feature is a product
    assert isinstance(source, HotLookup)
    hot = layer(torch.tensor([[77, 31, 0], [0, 0, 0]])).view(2, 3, 16)
    rows = source.rows.weight
    assert torch.equal(hot[1, 0], rows[0])  # numbered by feature and id
    assert torch.equal(hot[0, 0], rows[1])
    assert torch.equal(hot[0, 1], rows[2])
    cold = plain_table(source.cold, [300, 40, 3], 16)
    np.testing.assert_allclose(hot[1, 1].detach().numpy(), cold[1][0], atol=1e-6)
    assert layer.memory().parts["remap"] == 12 * (5 + 1 + 1)
    plain = fe.embedding(SCHEMA, "tt(rank=2)", dim=16).memory().serving
    assert layer.memory().parts["rows"] == plain + 4 * 16 * 3


def test_a_batch_of_hot_ids_only_and_of_none() -> None:
    schema = fe.Schema([fe.Feature("a", 300, multi=True)])
    layer = fe.embedding(schema, "tt(rank=2, cache=10)", dim=8)
    optimizer = fe.optim.RowAdam(layer.parameters())  # empty row gradients are gradients, too
    for values in ([], [3, 4], [200, 201], [3, 200]):
        ids = fe.Jagged(torch.tensor(values, dtype=torch.int64), torch.tensor([len(values), 0]))
        for mode in (True, False):
            out = layer.train(mode)(ids)
            assert out.shape == (2, 8)
            out.sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def test_an_unseen_id_is_the_product_of_trained_digits() -> None:
    schema = fe.Schema([fe.Feature("a", 64)])
    layer = fe.embedding(schema, "tt(rank=2)", dim=8)
    before = layer.eval()(torch.tensor([[5]])).detach().clone()
    layer.train()
    optimizer = fe.optim.build(layer, lr=0.1)[0]
    layer(torch.tensor([[4], [9]])).sum().backward()  # 5 = 1 + 4, 4 = 0 + 4: they share a digit
    optimizer.step()
    assert not torch.equal(layer.eval()(torch.tensor([[5]])), before)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("tt(rank=0)", "rank must be at least 1, got 0"),
        ("tt(cores=5)", "cores must be 2, 3 or 4, got 5"),
        ("tt(cores=1)", "cores must be 2, 3 or 4, got 1"),
        ("tt(cache=-1)", "cache must be at least 0, got -1"),
        ("tt(init=0.0)", "init must be above 0"),
    ],
)
def test_wrong_settings_are_named(spec: str, text: str) -> None:
    with pytest.raises(fe.ConfigError, match=text):
        fe.embedding(SCHEMA, spec, dim=8)


def test_unbounded_features_are_refused() -> None:
    with pytest.raises(fe.FeatembError, match="url"):
        fe.embedding(fe.Schema([fe.Feature("url")]), "tt(rank=2)", dim=8)


def test_cost_of_a_shape() -> None:
    assert train_size((2, 3, 4), (2, 2, 4), 5) == 2 * 2 * 5 + 3 * 5 * 2 * 5 + 4 * 5 * 4
