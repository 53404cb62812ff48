"""Narrow tables with projections: answers, the column of some ids, bytes, exact limits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.codecs.base import codec_by_name
from featemb.layer import BuildContext
from featemb.parts import Source, Split
from featemb.parts.projected import Projected, Widened
from featemb.projecting import projected_source, write_feature
from featemb.widths import WidthBytes, Widths, by_threshold, up_to

CARDINALITIES = (20_000, 3_000, 50, 7)
METHODS = ("mde", "mde(rounding=true)", "mde(alpha=0.3)", "field_size", "pca", "autodim")
DIM = 16
# every feature at the smallest width, and its projection
FLOORS = {"mde": 4 * (23_057 + 4 * DIM), "autodim": 4 * (2 * 23_057 + 4 * 3 * DIM)}


def schema_of(cards: tuple[int, ...] = CARDINALITIES, counts: str = "none") -> fe.Schema:
    generator = np.random.default_rng(0)
    known = {
        "none": lambda n: None,
        "sorted": lambda n: np.arange(n, 0, -1),
        "shuffled": lambda n: generator.permutation(n) + 1,
    }[counts]
    return fe.Schema(fe.Feature(f"f{i}", n, counts=known(n)) for i, n in enumerate(cards))


def context_of(schema: fe.Schema, dim: int = 4) -> BuildContext:
    return BuildContext(schema, dim, 5, torch.device("cpu"))


def by_hand(source: Source, widths: Widths, schema: fe.Schema, f: int, x: int) -> Tensor:
    """One vector in plain steps, from the tensors' values."""
    base = source.base if isinstance(source, Widened) else source
    groups = widths.groups()
    number, own = next((g, own) for g, (_, own) in enumerate(groups) if f in own)
    part = base.sources[number] if isinstance(base, Split) else base
    before = sum(schema.cardinalities[one] for one in own if one < f)
    row = part.rows.weight[before + x]
    vector = row
    if isinstance(part, Projected):
        matrix = part.projection.weight[own.index(f)]
        vector = sum(row[j] * matrix[j] for j in range(len(row)))
        vector = vector + getattr(part.projection, "bias", torch.zeros(99, 1))[own.index(f)]
    if isinstance(source, Widened) and f == widths.feature:
        counts = schema.features[f].counts
        order = list(range(schema.cardinalities[f]))
        if counts is not None and widths.frequent:
            order.sort(key=lambda one: (-counts[one], one))
        hot = sorted(order[: widths.hot])
        if x in hot:
            vector = vector + source.columns.weight[hot.index(x)] @ source.directions
    return vector


@pytest.mark.parametrize("counts", ["none", "sorted", "shuffled"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "widths",
    [
        Widths((1, 2, 4, 1)),
        Widths((2, 2, 4, 1), feature=1, hot=3),
        Widths((1, 1, 1, 1), feature=0, hot=5),
        Widths((1, 1, 4, 2), feature=0, hot=5, columns=3),
        Widths((3, 1, 4, 1), feature=0, hot=4, frequent=False),
        Widths((4, 4, 4, 4)),
    ],
)
def test_answers_equal_a_loop_over_ids(widths: Widths, bias: bool, counts: str) -> None:
    schema = schema_of((9, 5, 3, 7), counts)
    source = projected_source(context_of(schema), widths, 0.5, bias)
    for one in source.parameters():
        nn.init.uniform_(one, -1, 1)
    ids = torch.stack([torch.arange(9) % n for n in schema.cardinalities], 1)
    wanted = torch.stack(
        [
            torch.stack([by_hand(source, widths, schema, f, int(x)) for f, x in enumerate(row)])
            for row in ids
        ]
    )
    flat = torch.arange(4).repeat(9)
    for training in (True, False):
        source.train(training)
        assert torch.allclose(source.dense(ids), wanted, atol=1e-6)
        assert torch.allclose(source(ids.reshape(-1), flat), wanted.view(36, -1), atol=1e-6)


def test_other_ids_do_not_touch_the_column() -> None:
    schema, widths = schema_of((9, 5)), Widths((1, 2), feature=0, hot=3)
    source = projected_source(context_of(schema), widths, 0.5)
    assert isinstance(source, Widened)
    fe.optim.RowAdam(source.parameters())
    source.dense(torch.tensor([[2, 0], [8, 1], [5, 2]])).sum().backward()
    grad = source.columns.weight.grad
    assert grad.is_sparse
    assert grad.coalesce().indices().tolist() == [[2]]


@pytest.mark.parametrize(
    "widths",
    [
        Widths((2, 4, 1)),
        Widths((2, 4, 1), feature=0, hot=3),
        Widths((1, 4, 1), feature=0, hot=3, columns=3),
    ],
)
def test_a_feature_is_set_to_given_vectors(widths: Widths) -> None:
    schema = schema_of((9, 5, 3))
    source = projected_source(context_of(schema), widths, 0.5, bias=True).eval()
    scores, directions = torch.randn(9, 3), torch.randn(3, 4)
    bias = torch.randn(4)
    with torch.no_grad():
        write_feature(source, widths, 0, scores, directions, bias)
        write_feature(source, widths, 1, scores[:5], directions, bias)
        write_feature(source, widths, 2, scores[:3, :0], directions[:0], bias)
        ids = torch.stack([torch.arange(9), torch.arange(9) % 5, torch.arange(9) % 3], 1)
        found = source.dense(ids)
    columns = widths.sizes[0] + (torch.arange(9) < widths.hot) * widths.columns
    kept = torch.where(torch.arange(3) < columns[:, None], scores, 0)
    assert torch.allclose(found[:, 0], kept @ directions + bias, atol=1e-6)
    assert torch.allclose(found[:, 1], scores[ids[:, 1]] @ directions + bias, atol=1e-6)
    assert torch.allclose(found[:, 2], bias.expand(9, 4), atol=1e-6)


def test_vectors_of_every_width_start_alike() -> None:
    schema = schema_of((4000, 4000, 4000))
    source = projected_source(context_of(schema, DIM), Widths((1, 5, 16)), 0.05)
    ids = torch.arange(4000)[:, None].expand(-1, 3)
    spread = source.dense(ids).detach().std((0, 2))
    assert torch.allclose(spread, torch.tensor(0.05 / 3**0.5), rtol=0.3)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("counts", ["none", "shuffled"])
@pytest.mark.parametrize("bias", [False, True])
def test_limits_are_met_to_the_number(bias: bool, counts: str, codec: str) -> None:
    schema = schema_of((200, 40, 9, 2), counts)
    form = codec_by_name(codec)
    size = WidthBytes(schema, DIM, form, bias)
    order = by_threshold(4, DIM, lambda f, w: w * 1.0)
    floor, full = size(size.narrowest()), size((DIM,) * 4)
    row = 4 * DIM + form.stored_bytes(1, DIM)
    for limit in range(floor, full, max(1, (full - floor) // 25)):
        widths = size.fit(limit, order, "mine")
        context = BuildContext(schema, DIM, 0, torch.device("cpu"), form)
        source = projected_source(context, widths, 0.1, bias)
        frozen = fe.FrozenEmbedding(schema, DIM, (DIM,) * 4, source.frozen(form))
        used = frozen.memory().serving
        assert limit - row < used <= limit, widths
        if widths.hot and not isinstance(source.hot, fe.parts.hot.HotBitmap):
            assert limit - form.stored_bytes(1, widths.columns) < used
    assert size.fit(full + 99, order, "mine") == Widths((DIM,) * 4)
    with pytest.raises(fe.BudgetError, match="mine at width 16") as error:
        size.fit(floor - 1, order, "mine")
    assert error.value.floor == floor


def test_a_bitmap_is_left_out_where_it_costs_too_much() -> None:
    schema = schema_of((64_000,), "shuffled")
    size = WidthBytes(schema, 4, codec_by_name("fp32"))
    start = size((1,))
    few = size.fit(start + 16 + 12_000 + 40, [0], "mine")
    many = size.fit(start + 16 + 12_000 + 60_000, [0], "mine")
    assert (few.hot, few.frequent) == (3_010, False)
    assert (many.hot, many.frequent) == (15_000, True)


def test_a_projection_that_costs_more_than_it_saves_is_left_out() -> None:
    size = WidthBytes(schema_of((7, 50)), DIM, codec_by_name("fp32"))
    assert [size.real(0, width) for width in (1, 4, 5, 6)] == [1, 4, 16, 16]
    assert size.of(0, 4) == 4 * (7 * 4 + 4 * 16) < size.of(0, 16) == 4 * 7 * 16
    assert size.of(1, 3) == 4 * (50 * 3 + 3 * 16)


def test_orders() -> None:
    assert by_threshold(2, 3, lambda f, w: w if f else 2.5) == [1, 0, 0, 1]
    assert up_to([1, 0, 0, 1], [1, 2]) == [1]


@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
@pytest.mark.parametrize("method", METHODS)
def test_budgets_are_exact(method: str, ratio: int) -> None:
    schema = schema_of()
    limit = int(schema.full_bytes(DIM) / ratio)
    if ratio == 100:
        with pytest.raises(fe.BudgetError) as error:
            fe.embedding(schema, method, dim=DIM, ratio=ratio, device="meta")
        assert error.value.floor == FLOORS.get(method, FLOORS["mde"])
        return
    if method == "autodim" and ratio == 10:
        return
    plan = fe.embedding(schema, method, dim=DIM, ratio=ratio, device="meta").memory().serving
    assert limit - 4 < plan <= limit
    real = fe.embedding(schema, method, dim=DIM, ratio=ratio)
    assert real.memory().serving == plan
    stored = real.freeze()
    assert sum(one.numel() * one.element_size() for one in stored.buffers()) == plan


@pytest.mark.parametrize("method", METHODS)
def test_budgets_of_large_schemas_are_solved_quickly(method: str) -> None:
    from public_sizes import SCHEMAS

    schema, began = SCHEMAS["criteo"], time.perf_counter()
    layer = fe.embedding(schema, method, dim=DIM, ratio=7, device="meta")
    assert time.perf_counter() - began < 2
    used = layer.memory().serving
    assert schema.full_bytes(DIM) // 7 - 4 < used <= schema.full_bytes(DIM) // 7


@pytest.mark.parametrize("method", ["mde", "field_size", "pca", "autodim"])
def test_first_order_terms_are_hashed(method: str) -> None:
    layer = fe.embedding(schema_of(), method, dim=DIM, ratio=5)
    assert layer.companion(1).config.name == "hash"


def test_files_hold_the_column(tmp_path: Path) -> None:
    layer = fe.embedding(schema_of((90, 9), "shuffled"), "mde(limit=900)", dim=8).eval()
    assert isinstance(layer.source, Widened)
    frozen = layer.freeze()
    frozen.save(tmp_path / "a.safetensors")
    again = fe.load(tmp_path / "a.safetensors")
    ids = torch.stack([torch.arange(90), torch.arange(90) % 9], 1)
    assert torch.equal(again(ids), layer(ids))
    assert json.dumps(frozen.source.describe())
