"""MPE: its formulas against plain tensors, its order of ids, its decision, its bytes."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from public_sizes import SCHEMAS
from torch import Tensor

import featemb as fe
from featemb import staging
from featemb.bitwidths import fit_bits
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.methods.mpe import MPEEmbedding
from featemb.parts.mixed import group_bytes, group_sizes
from featemb.ranking import Ranking


def layer_of(text: str, schema: fe.Schema = SINGLE, dim: int = 8) -> MPEEmbedding:
    layer = fe.embedding(schema, text, dim=dim)
    assert isinstance(layer, MPEEmbedding)
    return layer


def plain_quantiser(w: Tensor, alpha: Tensor, beta: Tensor, bits: int) -> Tensor:
    v = (w - beta) / alpha
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    inside = v.clamp(low, high)
    return (inside + (inside.round() - inside).detach()) * alpha + beta


def test_the_search_reads_the_published_mixture_and_its_gradients() -> None:
    """Values and gradients of rows, offset, gates and steps, by autograd over the plain formula."""
    layer = layer_of("mpe(groups=2, bits=6, temperature=0.7)").double()
    mixed = layer.mixed
    with torch.no_grad():
        mixed.logits.normal_(generator=torch.Generator().manual_seed(1))
        mixed.offset.normal_(0, 0.01, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([0, 3, 146, 80, 3])
    reader = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (mixed(rows) * reader).sum().backward()

    weight = mixed.rows.weight.detach().clone().requires_grad_()
    gamma = mixed.logits.detach().clone().requires_grad_()
    beta = mixed.offset.detach().clone().requires_grad_()
    alpha = mixed.steps().detach().clone().requires_grad_()
    w = weight[rows]
    share = torch.softmax(gamma[rows // mixed.size] / 0.7, 1)
    mixture = sum(
        share[:, b, None] * plain_quantiser(w, alpha[b - 1], beta, b) for b in range(1, 7)
    )
    assert isinstance(mixture, Tensor)
    assert torch.allclose(mixed(rows), mixture)
    (mixture * reader).sum().backward()
    first = torch.tensor(mixed.first, dtype=torch.float64)
    scale = (w.numel() * 2.0 ** torch.arange(6)) ** -0.5
    assert torch.allclose(mixed.rows.weight.grad, weight.grad)
    assert torch.allclose(mixed.logits.grad, gamma.grad)
    assert torch.allclose(mixed.offset.grad, beta.grad)
    assert torch.allclose(mixed.scales.grad, alpha.grad * first * scale)


def test_the_penalty_weighs_rare_groups_most() -> None:
    layer = layer_of("mpe(mode=faithful, strength=0.5, groups=3)")
    with torch.no_grad():
        layer.mixed.logits.normal_(0, 0.001)
    share = torch.softmax(layer.mixed.logits.detach() / 0.003, 1)
    counts = Ranking.of(SINGLE, layer.mixed.size).shares()
    wanted = sum(
        float(0.5 * (counts.min() / counts[g]) * (share[g] * torch.arange(7)).sum())
        for g in range(len(counts))
    )
    assert float(layer.penalty().detach()) == pytest.approx(wanted, rel=1e-5)


def test_groups_that_are_never_read_leave_the_penalty_of_others_alone() -> None:
    counts = np.concatenate([np.repeat([40, 20, 10], 64), np.zeros(128, dtype=np.int64)])
    schema = fe.Schema([fe.Feature("a", len(counts), counts=counts)])
    layer = layer_of("mpe(mode=faithful, strength=1.0, groups=5)", schema)
    layer.penalty().backward()
    pull = layer.mixed.logits.grad.abs().sum(1)
    assert torch.allclose(pull / pull[-1], torch.tensor([0.25, 0.5, 1.0, 1.0, 1.0]))


def test_the_decision_is_the_largest_likely_width() -> None:
    layer = layer_of("mpe(mode=faithful, groups=3, temperature=1.0)")
    share = torch.full((len(layer.sizes), 7), 1e-4)
    share[:, 0] = 0.9
    share[0, 4], share[1, 2], share[1, 3] = 1 / 14 + 1e-3, 0.5, 1 / 14 - 1e-3
    with torch.no_grad():
        layer.mixed.logits.copy_((share / share.sum(1, keepdim=True)).log())
    layer.stage = "search"
    layer.eval()
    assert layer.mixed.bits.tolist() == [4, 2, *[0] * (len(layer.sizes) - 2)]


def test_groups_are_those_of_falling_counts() -> None:
    """Brute force: sort all ids by count; id 0 of two features is out of order."""
    random = np.random.default_rng(0)
    counts = {
        "a": np.sort(random.integers(0, 500, 300))[::-1],
        "b": np.concatenate([[40], np.sort(random.integers(0, 400, 90))[::-1]]),
        "c": np.concatenate([[10**6], np.sort(random.integers(0, 50, 30))[::-1]]),
    }
    schema = fe.Schema(fe.Feature(name, len(one), counts=one) for name, one in counts.items())
    size = 50
    ranking = Ranking.of(schema, size)
    address = ranking.address(torch.device("cpu"))
    every = [(f, x) for f, one in enumerate(counts.values()) for x in range(len(one))]
    feature, ids = (torch.tensor(column) for column in zip(*every, strict=True))
    rows = address(ids, feature)[:, 0]
    assert sorted(rows.tolist()) == list(range(len(every)))
    flat = np.concatenate(list(counts.values()))
    group = (rows // size).numpy()
    for g in range(group.max()):
        assert flat[group == g].min() >= flat[group == g + 1].max()
    shares = ranking.shares()
    wanted = [flat[group == g].sum() / flat.sum() for g in range(group.max() + 1)]
    assert np.allclose(shares, wanted)


def test_ids_in_any_order_get_a_stored_permutation() -> None:
    counts = np.random.default_rng(1).permutation(200)
    schema = fe.Schema([fe.Feature("a", 200, counts=counts), fe.Feature("b", 3)])
    schema = schema.with_counts({"b": [5, 9, 1]})
    address = Ranking.of(schema, 64).address(torch.device("cpu"))
    rows = address(torch.arange(200), torch.zeros(200, dtype=torch.int64))[:, 0]
    assert (np.diff(counts[rows.argsort().numpy()]) <= 0).all()
    stored = sum(one.numel() * one.element_size() for one in address.buffers())
    assert stored == 4 * math.ceil(203 * 8 / 32)
    layer = layer_of("mpe", schema)
    ids = torch.tensor([[0, 1], [199, 2]])
    assert torch.equal(layer.eval()(ids), layer.freeze()(ids))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 1), st.integers(0, 4)), min_size=1),
    st.integers(0, 600),
)
def test_bits_fit_the_limit_and_leave_nothing_that_fits(
    groups: list[tuple[int, float, int]], limit: int
) -> None:
    sizes, shares, wanted = (list(column) for column in zip(*groups, strict=True))
    bits = list(fit_bits(wanted, shares, sizes, 4, limit, 4))
    used = group_bytes(sizes, 4, bits)
    assert used <= limit
    for group in range(len(bits)):
        more = [bit + (g == group) for g, bit in enumerate(bits)]
        assert bits[group] == 4 or group_bytes(sizes, 4, more) > limit


def test_bits_go_where_errors_cost_most() -> None:
    """Against every assignment: the summed error of the greedy one is near the least."""
    sizes, shares, limit = [32, 32, 32], [0.7, 0.25, 0.05], 32 * 4 * 5 // 8

    def error(bits: tuple[int, ...]) -> float:
        return sum(share * 4.0**-bit for share, bit in zip(shares, bits, strict=True))

    possible = itertools.product(range(5), repeat=3)
    best = min(error(b) for b in possible if group_bytes(sizes, 4, list(b)) <= limit)
    assert error(fit_bits([0, 0, 0], shares, sizes, 4, limit, 4)) == pytest.approx(best)


@pytest.mark.parametrize("ratio", [10, 50, 200])
def test_budgets_hold_at_public_sizes(ratio: int) -> None:
    schema = SCHEMAS["criteo"]
    layer = fe.embedding(schema, "mpe", dim=16, ratio=ratio, device="meta")
    limit = schema.full_bytes(16) // ratio
    one_bit = sum(schema.cardinalities) // 128 * 16 // 8  # of every number of a group
    assert limit - one_bit - 8 <= layer.memory().serving <= limit


def test_bytes_are_their_formula() -> None:
    layer = layer_of("mpe(groups=2, limit=900)")
    bits = layer.mixed.known_bits
    sizes = group_sizes(147, layer.mixed.size)
    codes = sum(4 * math.ceil(n * 8 * b / 32) for n, b in zip(sizes, bits, strict=True))
    assert layer.memory().parts == {
        "remap": 4 * 4 * (len(sizes) + 1),
        "codes": codes,
        "scales": 4 * 6 + 4 * 8,
    }
    assert 900 - layer.memory().serving < 64


def test_retraining_begins_with_the_first_rows_and_keeps_the_rest() -> None:
    layer = layer_of("mpe(groups=2)")
    start = copy.deepcopy(layer.state_dict())
    model, data = LinearReader(layer), task(6)
    search, retrain = layer.stages()
    staging.begin(model, search, None)
    optimizers = fe.optim.build(model, lr=0.01, stage=search)
    model.train()
    for batch in data:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
        (loss + layer.penalty()).backward()
        for one in optimizers:
            one.step()
        model.zero_grad()
        layer.after_step(1)
    trained = copy.deepcopy(layer.state_dict())
    assert not torch.equal(trained["source.rows.rows.weight"], start["source.rows.rows.weight"])
    staging.begin(model, retrain, None)
    now = layer.state_dict()
    assert torch.equal(now["source.rows.rows.weight"], start["source.rows.rows.weight"])
    for name in ("source.rows.scales", "source.rows.offset", "source.rows.logits"):
        assert torch.equal(now[name], trained[name])


def test_pressure_rises_until_the_limit_holds() -> None:
    layer = layer_of("mpe(groups=2, limit=400)").train()
    layer.stage = "search"
    for _ in range(50):
        layer.after_step(1)
    assert float(layer.pressure) > 0
    with torch.no_grad():
        layer.mixed.logits[:, 0] = 50.0  # all groups at 0 bits: below the limit
    before = float(layer.pressure)
    layer.after_step(1)
    assert float(layer.pressure) < before


def test_groups_without_bits_read_zeros() -> None:
    layer = layer_of("mpe(groups=2, limit=300)").eval()
    assert 0 in layer.mixed.known_bits
    ids = single_ids()
    rows = layer.source.address(ids, torch.arange(4))[..., 0]
    zero = torch.tensor(layer.mixed.known_bits)[rows // layer.mixed.size] == 0
    vectors = layer(ids).view(*ids.shape, -1)
    assert (vectors[zero] == 0).all()
    assert (vectors[~zero] != 0).any()
