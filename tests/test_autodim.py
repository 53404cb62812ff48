"""AutoDim: the supernet's formula, its noise and gradients, the selection within a limit."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb import staging
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.hashing import mix64_int
from featemb.methods.autodim import AutoDimEmbedding, candidate_widths
from featemb.parts.candidates import Candidates

MASK = (1 << 64) - 1


def layer_of(spec: str = "autodim", dim: int = 8, **size: int) -> AutoDimEmbedding:
    layer = fe.embedding(SINGLE, spec, dim=dim, **size)
    assert isinstance(layer, AutoDimEmbedding)
    return layer


def scattered(layer: AutoDimEmbedding) -> Candidates:
    """The supernet with values that tell its terms apart."""
    supernet = layer.supernet
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in (*supernet.parameters(), supernet.mean):
            one.copy_(torch.randn(one.shape, generator=generator))
        supernet.variance.copy_(torch.rand(supernet.variance.shape, generator=generator) + 0.5)
    return supernet


def noise(seed: int, draw: int, count: int) -> list[float]:
    """Gumbel noise in Python's integers."""
    salt = mix64_int((seed + mix64_int(draw)) & MASK)
    found = []
    for number in range(count):
        bits = mix64_int((salt + number) & MASK) & ((1 << 52) - 1)
        found.append(-math.log(-math.log((bits + 0.5) / (1 << 52))))
    return found


def by_hand(supernet: Candidates, ids: Tensor, p: Tensor, batch: bool) -> Tensor:
    offsets = torch.tensor(supernet.address.offsets)
    total = torch.zeros(*ids.shape, supernet.maps.shape[2])
    at = 0
    for k, width in enumerate(supernet.candidates):
        vectors = torch.zeros_like(total)
        for b, f in itertools.product(range(ids.shape[0]), range(ids.shape[1])):
            row = supernet.tables[k].weight[offsets[f] + ids[b, f]]
            vectors[b, f] = row @ supernet.maps[f, at : at + width] + supernet.biases[f, k]
        at += width
        mean, variance = supernet.mean[k], supernet.variance[k]
        if batch:
            mean = vectors.mean((0, 1))
            variance = (vectors - mean).square().mean((0, 1))
        normed = (vectors - mean) / (variance + 1e-5).sqrt()
        total = total + p[:, k, None] * normed
    return total


def test_candidates() -> None:
    assert candidate_widths(16) == [2, 4, 8, 16]
    assert candidate_widths(6) == [2, 4, 6]
    assert candidate_widths(2) == [2]
    assert candidate_widths(3) == [2, 3]


def test_eval_mode_is_the_mixture_without_noise() -> None:
    layer = layer_of().eval()
    supernet, ids = scattered(layer), single_ids(6)
    wanted = by_hand(supernet, ids, supernet.alpha.softmax(1), batch=False)
    assert torch.allclose(layer(ids).view_as(wanted), wanted, atol=1e-4)


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_training_mixes_by_a_gumbel_softmax(tau: float) -> None:
    layer = layer_of()
    supernet, ids = scattered(layer), single_ids(6)
    supernet.tau.fill_(tau)
    supernet.draws.fill_(7)
    g = torch.tensor(noise(int(supernet.seed), 7, supernet.alpha.numel())).view(4, -1)
    p = ((supernet.alpha.log_softmax(1) + g) / tau).softmax(1)
    before = supernet.mean.clone()
    found = layer(ids)
    wanted = by_hand(supernet, ids, p, batch=True)
    assert torch.allclose(found.view_as(wanted), wanted, atol=1e-4)
    assert int(supernet.draws) == 8
    assert not torch.equal(before, supernet.mean)


def test_the_running_statistics_are_those_of_batch_normalisation() -> None:
    layer = layer_of()
    supernet, ids = scattered(layer), single_ids(9)
    norm = torch.nn.BatchNorm1d(8, affine=False)
    norm.running_mean.copy_(supernet.mean[0])
    norm.running_var.copy_(supernet.variance[0])
    rows = ids + torch.tensor(supernet.address.offsets)
    vectors = torch.einsum("bfk,fkd->bfd", supernet.tables[0].weight[rows], supernet.maps[:, :2])
    norm((vectors + supernet.biases[:, 0]).reshape(-1, 8))
    layer(ids)
    assert torch.allclose(norm.running_mean, supernet.mean[0], atol=1e-5)
    assert torch.allclose(norm.running_var, supernet.variance[0], atol=1e-4)


def test_training_gradients_agree_with_finite_differences() -> None:
    layer = layer_of(dim=4).double()
    scattered(layer)
    ids = single_ids(5)
    reader = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    start = {name: one.clone() for name, one in layer.named_buffers()}
    for name, parameter in layer.named_parameters():
        base = parameter.detach().reshape(-1)
        some = torch.arange(0, base.numel(), max(1, base.numel() // 40))

        def read(
            values: Tensor, name: str = name, base: Tensor = base, some: Tensor = some
        ) -> Tensor:
            shape = layer.get_parameter(name).shape
            full = base.index_put((some,), values).view(shape)
            fixed = {key: one.clone() for key, one in start.items()}
            out = torch.func.functional_call(layer, {name: full, **fixed}, (ids,))
            return (out.tanh() @ reader).sum()

        assert torch.autograd.gradcheck(read, (base[some].requires_grad_(),)), name


def test_temperature_falls_and_noise_is_resumed() -> None:
    layer = layer_of("autodim(rate=0.3)")
    taus = []
    for step in range(1, 6):
        layer.after_step(step)
        taus.append(float(layer.supernet.tau))
    assert taus == pytest.approx([0.7, 0.4, 0.1, 0.01, 0.01])
    layer(single_ids())
    other = fe.embedding(SINGLE, "autodim(rate=0.3)", dim=8, seed=8)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(single_ids()), other(single_ids()))


def test_held_out_batches_move_alpha_alone() -> None:
    model = LinearReader(layer_of())
    stage = model.layer.stages()[0]
    assert stage.held_out
    (held_out,) = fe.optim.build(model, 0.01, stage=stage, split="held_out")
    train = fe.optim.build(model, 0.01, stage=stage)
    own = [id(p) for group in held_out.param_groups for p in group["params"]]
    others = [id(p) for one in train for group in one.param_groups for p in group["params"]]
    assert own == [id(model.layer.supernet.alpha)]
    assert not set(own) & set(others)
    assert len(own) + len(others) == len(list(model.parameters()))


def test_alpha_alone_decides_where_the_limit_is_wide() -> None:
    layer = layer_of(budget=10**6)
    assert layer.choose().sizes == (8, 8, 8, 8)
    with torch.no_grad():
        layer.supernet.alpha.copy_(torch.tensor([[0, 2, 1], [3, 1, 0], [0, 0, 9], [1.0, 0, 0]]))
    order = layer.choose
    cost = layer.size((4, 2, 8, 2))
    layer.limit = cost
    # a feature of two ids has no projection that pays
    assert order().sizes == (4, 2, 8, layer.size.real(3, 2))


@pytest.mark.parametrize("seed", range(6))
def test_the_selection_is_close_to_the_best_one(seed: int) -> None:
    generator = np.random.default_rng(seed)
    schema = fe.Schema(fe.Feature(f"f{i}", int(n)) for i, n in enumerate((900, 400, 90, 70, 33)))
    layer = fe.embedding(schema, "autodim", dim=16, ratio=2.5)
    alpha = torch.tensor(generator.normal(size=(5, 4)) * 2).float()
    with torch.no_grad():
        layer.supernet.alpha.copy_(alpha)
    log = alpha.double().log_softmax(1)
    found = layer.choose()
    assert layer.limit - 4 * 17 < layer.freeze().memory().serving <= layer.limit
    widths = candidate_widths(16)
    below = [max(k for k, width in enumerate(widths) if width <= one) for one in found.sizes]

    def value(choice: tuple[int, ...]) -> float:
        return sum(float(log[f, k]) for f, k in enumerate(choice))

    choices = itertools.product(range(4), repeat=5)
    fitting = [one for one in choices if layer.size([widths[k] for k in one]) <= layer.limit]
    best = max(map(value, fitting))
    # greedy on the hull is the best one but for what a single feature can change
    largest = max(float(log[f].max() - log[f].min()) for f in range(5))
    assert value(tuple(below)) >= best - largest


@pytest.mark.parametrize("start", ["initial", "inherit"])
def test_stages(start: str) -> None:
    layer = layer_of(f"autodim(limit=2600, start={start})")
    supernet = scattered(layer)
    ids = single_ids()
    dense = 4 * 8 * sum(SINGLE.cardinalities)
    assert layer.memory().training > dense * 14 / 8
    first = copy.deepcopy(layer.state_dict())
    staging.search(layer, layer.stages()[1], lambda: 0.0)
    selected = layer.found.clone()
    frozen = layer.freeze()
    staging.begin(layer, layer.stages()[2], first)
    assert torch.equal(layer.found, selected)
    assert layer.memory().training < dense
    assert 2600 - 36 < layer.memory().serving <= 2600
    same = torch.equal(layer.eval()(ids), frozen(ids))
    assert same == (start == "inherit")
    assert not any(one is supernet for one in layer.modules())


def test_the_norm_is_folded_into_the_map() -> None:
    layer = layer_of("autodim(start=inherit)", budget=10**6)
    supernet = scattered(layer)
    with torch.no_grad():
        supernet.alpha.copy_(torch.tensor([[0, 50.0, 0]] * 4))  # the second candidate alone
    layer.limit = layer.size((4, 4, 4, 4))
    assert torch.allclose(layer.freeze()(single_ids()), layer.eval()(single_ids()), atol=1e-4)


def test_training_ends_within_the_limit() -> None:
    layer = fe.check.Case("autodim(limit=2600, rate=0.01)").trained()
    assert 2600 - 36 < layer.memory().serving <= 2600


def test_held_out_batches_are_asked_for() -> None:
    data = task(2)
    with pytest.raises(fe.RunError, match="held_out"):
        fe.fit(LinearReader(layer_of()), lambda epoch: data)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("autodim(rate=-1.0)", "rate"),
        ("autodim(alpha_lr=0.0)", "alpha_lr"),
        ("autodim(start=mine)", "start"),
    ],
)
def test_bad_settings_are_named(spec: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(spec)
