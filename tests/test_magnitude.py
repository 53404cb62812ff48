"""Magnitude pruning through its two stages, against numpy (its budgets' bounds: test_kept.py)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import featemb as fe
from featemb import staging
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.parts.kept import index_bytes

BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
DIM, KEPT = 8, 45
UNITS = ("weights", "rows")
OFFSETS = np.cumsum([0, *SINGLE.cardinalities[:-1]])


def model(unit: str, seed: int = 1, kept: int = KEPT) -> LinearReader:
    spec = f"magnitude(unit={unit}, kept={kept})"
    return LinearReader(fe.embedding(SINGLE, spec, dim=DIM, seed=seed))


def begin(net: LinearReader, name: str) -> fe.Stage:
    stage = next(one for one in net.layer.stages() if one.name == name)
    staging.begin(net, stage)
    return stage


def steps(net: LinearReader, stage: fe.Stage, count: int = 6) -> None:
    """Train some steps as any loop does."""
    net.train()
    optimizers = fe.optim.build(net, 0.05, stage=stage)
    for step, batch in enumerate(task(count), start=1):
        net.zero_grad()
        bce(net(batch.ids), batch.label).backward()
        net.layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        net.layer.after_step(step)


def trained(unit: str, tuned: bool = False) -> LinearReader:
    """Return a model after some steps of the first stage, or in the middle of the last."""
    net = model(unit)
    for name in ("train", "tune")[: 1 + tuned]:
        steps(net, begin(net, name))
    return net


def mask_of(table: np.ndarray, unit: str, kept: int = KEPT) -> np.ndarray:
    """Return which numbers of a table are its largest, or in its largest rows, ``[N, D]``."""
    size = np.abs(table) if unit == "weights" else np.abs(table).sum(1, keepdims=True)
    order = sorted(range(size.size), key=lambda i: (-size.flat[i], i))
    mask = np.zeros(size.shape, bool)
    mask.flat[order[:kept]] = True
    return np.broadcast_to(mask, table.shape)


def read(table: np.ndarray, ids: Tensor) -> np.ndarray:
    """Return the vectors of a plain table, ``[B, F D]``."""
    return table[ids.numpy() + OFFSETS].reshape(len(ids), -1)


@pytest.mark.parametrize("unit", UNITS)
def test_the_largest_of_the_trained_table_are_kept(unit: str) -> None:
    net, ids = trained(unit), single_ids()
    layer = net.layer
    table = layer.weight.detach().numpy().copy()
    mask = mask_of(table, unit)
    assert not np.array_equal(mask, mask_of(model(unit).layer.weight.detach().numpy(), unit))
    assert np.array_equal(layer.train()(ids).detach().numpy(), read(table, ids)), "no mask yet"
    wanted = read(np.where(mask, table, 0), ids)
    assert np.array_equal(layer.freeze()(ids).numpy(), wanted), "frozen in training mode"
    assert not layer.masked.keep.any(), "freezing chose a mask"
    assert np.array_equal(layer.eval()(ids).detach().numpy(), wanted)
    begin(net, "tune")
    assert np.array_equal(layer.weight.detach().numpy(), table), "weights are inherited"
    assert np.array_equal(layer.train()(ids).detach().numpy(), wanted)


@pytest.mark.parametrize("unit", UNITS)
def test_the_mask_of_the_moment_follows_training_until_tune(unit: str) -> None:
    net = trained(unit)
    layer = net.layer
    for scale in (1, -1):  # tables that keep quite different entries
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(1, 2, layer.weight.numel()).view_as(layer.weight))
            layer.weight.pow_(scale)
        layer.train().eval()
        table = layer.weight.detach().numpy()
        wanted = mask_of(table, unit)
        assert np.array_equal(layer.masked.keep.expand_as(layer.weight).numpy(), wanted)
    begin(net, "tune")
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(0))
    layer.train().eval()
    assert np.array_equal(layer.masked.keep.expand_as(layer.weight).numpy(), wanted), "final"


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_answers_are_those_of_the_frozen_layer(unit: str, tuned: bool) -> None:
    layer, ids = trained(unit, tuned).layer, single_ids(256)
    layer.eval()
    assert int(layer.masked.keep.sum()) == KEPT
    assert torch.equal(layer.freeze()(ids), layer(ids))
    assert layer.freeze().memory().serving == layer.memory().serving


@pytest.mark.parametrize("unit", UNITS)
def test_tune_trains_the_kept_entries_alone(unit: str) -> None:
    net, ids = trained(unit), single_ids()
    layer = net.layer
    stage = begin(net, "tune")
    keep, before = layer.masked.keep.clone(), layer.weight.detach().clone()
    mask = keep.expand_as(before)
    net.train()
    out = layer(ids)
    assert np.array_equal(out.detach().numpy(), read(torch.where(mask, before, 0.0).numpy(), ids))
    net.zero_grad()
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out * upstream).sum().backward()
    wanted = np.zeros(before.shape)
    np.add.at(wanted, ids.numpy() + OFFSETS, upstream.view(len(ids), -1, DIM).double().numpy())
    gradient = layer.weight.grad.to_dense()
    assert not gradient[~mask].any()
    assert np.allclose(gradient, np.where(mask, wanted, 0), atol=1e-5)
    assert gradient[mask].any()
    steps(net, stage)
    assert torch.equal(layer.masked.keep, keep)
    assert torch.equal(layer.weight[~mask], before[~mask])
    assert not torch.equal(layer.weight[mask], before[mask])


@pytest.mark.parametrize("unit", UNITS)
def test_tune_resumes_from_the_state_alone(unit: str) -> None:
    net, other = trained(unit, tuned=True), model(unit, seed=9)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    assert other.layer.stage == "tune"
    ids = single_ids()
    for one in (net, other):
        one.train()
        steps(one, one.layer.stages()[1], 3)
    assert torch.equal(other.layer(ids), net.layer(ids))
    assert torch.equal(other.layer.eval()(ids), net.layer.eval()(ids))
    assert torch.equal(other.layer.freeze()(ids), net.layer(ids))


@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
@pytest.mark.parametrize("unit", UNITS)
def test_one_entry_more_is_beyond_the_budget(unit: str, ratio: int) -> None:
    layer = fe.embedding(BIG, f"magnitude(unit={unit})", dim=16, ratio=ratio, device="meta")
    limit = BIG.full_bytes(16) // ratio
    rows = sum(BIG.cardinalities)
    total, numbers = (rows, 16) if unit == "rows" else (rows * 16, 1)

    def size(kept: int) -> int:
        return 4 * numbers * kept + index_bytes(kept, total)

    kept = layer.config.kept
    assert layer.memory().serving == size(kept)
    assert size(kept) <= limit < size(kept + 1)


@pytest.mark.parametrize("unit", UNITS)
def test_the_floor_is_the_smallest_budget(unit: str) -> None:
    spec = f"magnitude(unit={unit})"
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(BIG, spec, dim=16, budget=1, device="meta")
    floor = caught.value.floor
    assert fe.embedding(BIG, spec, dim=16, budget=floor, device="meta").config.kept == 1
    with pytest.raises(fe.BudgetError):
        fe.embedding(BIG, spec, dim=16, budget=floor - 1, device="meta")


@pytest.mark.parametrize("unit", UNITS)
def test_sizes_by_hand(unit: str) -> None:
    rows = sum(SINGLE.cardinalities)
    total = rows if unit == "rows" else rows * DIM
    default = fe.embedding(SINGLE, f"magnitude(unit={unit})", dim=DIM).eval()
    assert int(default.masked.keep.sum()) == total // 10
    for kept in (1, total, 10 * total):
        layer, ids = model(unit, kept=kept).layer.eval(), single_ids()
        assert int(layer.masked.keep.sum()) == min(kept, total)
        assert torch.equal(layer.freeze()(ids), layer(ids))
    assert layer.memory().serving == fe.embedding(SINGLE, "full", dim=DIM).memory().serving


@pytest.mark.parametrize("unit", UNITS)
def test_an_id_never_seen_reads_zeros_or_its_initial_numbers(unit: str) -> None:
    net = model(unit, kept=400 if unit == "weights" else 60)
    start = net.layer.weight.detach().clone()
    data = [batch.ids for batch in task(20)]
    for ids in data:
        ids[:, 0] %= 50  # users from 50 on never occur
    optimizer = fe.optim.RowAdam(net.parameters(), lr=0.05)
    for ids in data:
        net.zero_grad()
        bce(net(ids), (ids[:, 0] % 2).float()).backward()
        optimizer.step()
    unseen = torch.zeros(47, SINGLE.num_features, dtype=torch.int64)
    unseen[:, 0] = torch.arange(50, 97)
    found = net.layer.eval()(unseen)[:, :DIM]
    assert torch.logical_or(found == 0, found == start[50:97]).all()
    assert (found == 0).float().mean() > 0.9
    assert net.layer(data[0])[:, :DIM].any()


def test_a_broken_table_is_named() -> None:
    layer = model("rows").layer
    with torch.no_grad():
        layer.weight[3, 2] = float("nan")
    with pytest.raises(fe.DataError, match="entry 3 has no score"):
        layer.eval()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("unit=columns", "unit must be 'weights' or 'rows'"),
        ("kept=0", "kept must be at least 1"),
        ("kept=-5", "kept must be at least 1"),
        ("init=-0.1", "init must be finite and at least 0"),
        ("kept=0.5", "kept"),
        ("share=0.5", "share"),
    ],
)
def test_bad_settings_are_named(setting: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(f"magnitude({setting})")
