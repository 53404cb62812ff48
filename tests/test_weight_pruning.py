"""DeepLight, PEP and AutoSrh: their formulas, stages and sizes (PEP's thresholds: test_pep.py)."""

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
from featemb.methods.autosrh import frequency_groups
from featemb.stage import Stage

BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
METHODS = ("deeplight", "pep", "autosrh")


def model(spec: str, seed: int = 1, **options: object) -> LinearReader:
    return LinearReader(fe.embedding(SINGLE, spec, dim=8, seed=seed, **options))


def steps(net: LinearReader, stage: Stage, count: int, lr: float = 0.02) -> None:
    """Train some steps as any loop does."""
    net.train()
    optimizers = [fe.optim.build(net, lr, stage=stage, split=s) for s in ("train", "held_out")]
    for step, batch in enumerate(task(count), start=1):
        for used in optimizers if stage.held_out else optimizers[:1]:
            net.zero_grad()
            (bce(net(batch.ids), batch.label) + net.layer.penalty()).backward()
            net.layer.after_backward()
            for optimizer in used:
                optimizer.step()
        net.layer.after_step(step)


def run_to(net: LinearReader, name: str, count: int = 4) -> Stage:
    """Go through the stages up to one, begin it and return it."""
    start = copy.deepcopy(net.state_dict())
    for stage in net.layer.stages():
        staging.begin(net, stage, start)
        if stage.kind == "search":
            staging.search(net, stage, lambda: 0.0)
        elif stage.name == name:
            return stage
        else:
            steps(net, stage, count)
    raise AssertionError(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
def test_budgets_are_met_to_the_last_number(method: str, ratio: int) -> None:
    layer = fe.embedding(BIG, method, dim=16, ratio=ratio)
    limit = BIG.full_bytes(16) / ratio
    # a number takes 4 bytes and 1 or 2 of the index
    assert limit - 6 < layer.memory().serving <= limit


@pytest.mark.parametrize("method", METHODS)
def test_the_floor_can_be_met(method: str) -> None:
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(BIG, method, dim=16, budget=4)
    floor = caught.value.floor
    assert fe.embedding(BIG, method, dim=16, budget=floor).memory().serving <= floor


@pytest.mark.parametrize("method", METHODS)
def test_the_last_stage_trains_the_kept_numbers_alone(method: str) -> None:
    net = model(f"{method}(kept=200)")
    stage = run_to(net, net.layer.stages()[-1].name)
    layer = net.layer
    keep, before = layer.masked.keep.clone(), layer.weight.detach().clone()
    assert int(keep.sum()) == 200
    net.train()
    net.zero_grad()
    bce(net(single_ids()), torch.ones(64)).backward()
    gradient = layer.weight.grad.to_dense()
    assert not gradient[~keep].any()
    assert gradient[keep].any()
    steps(net, stage, 5)
    assert torch.equal(layer.masked.keep, keep)
    assert torch.equal(layer.weight[~keep], before[~keep])
    served = layer.eval()(single_ids())
    assert torch.equal(served, layer.freeze()(single_ids()))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_of_the_served_size_in_every_stage(method: str) -> None:
    net = model(f"{method}(kept=150)")
    for stage in net.layer.stages():
        if stage.kind == "train":
            fresh = model(f"{method}(kept=150)")
            now = run_to(fresh, stage.name)
            steps(fresh, now, 3)
            fresh.eval()
            assert int(fresh.layer.masked.keep.sum()) == 150
            assert torch.equal(fresh.layer(single_ids()), fresh.layer.freeze()(single_ids()))


def test_deeplight_zeroes_the_share_that_its_schedule_wants() -> None:
    net = model("deeplight(kept=200, every=4, ramp=50)")
    stage = run_to(net, "prune")
    layer = net.layer
    total = layer.weight.numel()
    assert stage.optimizer == "keep"
    shares = []
    for step in range(1, 41):
        with torch.no_grad():
            noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(step))
            layer.weight.copy_(noise)  # everything has grown again
        before = layer.weight.detach().clone()
        layer.after_step(step)
        zeros = int((layer.weight == 0).sum())
        if step % 4:
            assert zeros == 0
            continue
        wanted = int((1 - 200 / total) * (1 - 0.01 ** (step / 50)) * total)
        assert zeros == wanted
        order = np.argsort(before.abs().flatten().numpy(), kind="stable")
        assert not layer.weight.flatten()[order[:wanted]].any()
        assert torch.equal(layer.weight.flatten()[order[wanted:]], before.flatten()[order[wanted:]])
        shares.append(zeros / total)
    assert shares == sorted(shares)
    assert shares[-1] > 0.9 * (1 - 200 / total) * (1 - 0.01**0.8)


def test_deeplight_lets_zeroed_numbers_grow_again_and_leaves_moments_alone() -> None:
    net = model("deeplight(kept=200, every=4, ramp=4)")
    stage = run_to(net, "prune")
    layer, batch = net.layer, task(1)[0]
    optimizer = fe.optim.build(net, 0.02, stage=stage)[0]
    for step in range(1, 6):
        net.zero_grad()
        bce(net(batch.ids), batch.label).backward()
        optimizer.step()
        moments = copy.deepcopy(optimizer.state[layer.weight])
        layer.after_step(step)
        for name, value in optimizer.state[layer.weight].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[name])), name
        if step == 4:
            zeroed = layer.weight.detach() == 0
            assert zeroed.any()
    assert (layer.weight[zeroed] != 0).any()


def test_deeplight_without_its_last_stage_serves_the_largest() -> None:
    net = model("deeplight(kept=200, every=3, ramp=5, tune=false)")
    stage = run_to(net, "prune")
    assert stage == net.layer.stages()[-1]
    steps(net, stage, 7)  # the last step comes after the last pruning
    largest = net.layer.weight.detach().abs().flatten().argsort(descending=True)[:200]
    net.eval()
    assert net.layer.masked.keep.flatten().nonzero()[:, 0].equal(largest.sort().values)


@pytest.mark.parametrize("method", METHODS)
def test_ids_never_seen_read_zeros_mostly(method: str) -> None:
    net = model(f"{method}(kept=100)")
    optimizer = fe.optim.RowAdam([net.layer.weight, net.weight], lr=0.05)
    for batch in task(20):
        net.zero_grad()
        bce(net(batch.ids.clamp(max=torch.tensor([49, 99, 99, 99]))), batch.label).backward()
        optimizer.step()
    unseen = torch.zeros(47, 4, dtype=torch.int64)
    unseen[:, 0] = torch.arange(50, 97)
    assert (net.layer.eval()(unseen)[:, :8] == 0).float().mean() > 0.95


def test_deeplight_resumes_in_the_middle_of_its_schedule() -> None:
    net, other = model("deeplight(kept=200, every=3)"), model("deeplight(kept=200, every=3)", 2)
    steps(net, run_to(net, "prune"), 7)
    other.load_state_dict(net.state_dict())
    assert int(other.layer.steps) == 7
    assert other.layer.sparsity() == net.layer.sparsity() > 0


def test_pep_moves_its_thresholds_and_starts_anew() -> None:
    net = model("pep(kept=200)")
    start = {k: v.clone() for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    stage = run_to(net, "retrain", count=30)
    assert stage.weights == "initial"
    layer = net.layer
    assert torch.equal(layer.weight, start["layer.source.rows.rows.weight"])
    assert int(layer.masked.keep.sum()) == 200
    moved = model("pep(kept=200)")
    staging.begin(moved, moved.layer.stages()[0])
    steps(moved, moved.layer.stages()[0], 30)
    change = (moved.layer.soft.thresholds.weight + 7.0).abs()
    assert (change > 0.1).float().mean() > 0.5, "the thresholds hardly moved"


def test_autosrh_groups_ids_by_frequency() -> None:
    counts = {"x": np.array([5, 1, 1, 9, 1, 7]), "y": np.array([2, 8, 2, 3])}
    schema = fe.Schema([fe.Feature("x", 6), fe.Feature("y", 4)]).with_counts(counts)
    every = np.concatenate(list(counts.values()))
    found = frequency_groups(schema, 3)
    wanted = [int(sum(every < one) * 3 / 10) for one in every]
    assert found.tolist() == wanted
    for one in set(every):
        assert len(set(found[every == one])) == 1


def test_autosrh_learns_its_gates_on_held_out_batches_alone() -> None:
    net = model("autosrh(kept=200, alpha_lr=0.01, l1=0.001)")
    stage = run_to(net, "search")
    assert stage.held_out
    assert not stage.network
    layer, batch = net.layer, task(1)[0]
    reader = net.weight.detach().clone()
    table = layer.weight.detach().clone()
    plain = copy.deepcopy(net)
    loss = bce(plain(batch.ids), batch.label) + 0.001 * plain.layer.grouped.gates.abs().sum()
    gradient = torch.autograd.grad(loss, plain.layer.grouped.gates)[0]
    gradient = gradient / (gradient.abs().mean(1, keepdim=True) + 1e-8)
    wanted = (layer.grouped.gates.detach() - 0.01 * gradient).clamp(0, 1)
    net.train()
    held_out = fe.optim.build(net, 0.02, stage=stage, split="held_out")
    net.zero_grad()
    (bce(net(batch.ids), batch.label) + layer.penalty()).backward()
    layer.after_backward()
    for optimizer in held_out:
        optimizer.step()
    layer.after_step(1)
    assert torch.allclose(layer.grouped.gates, wanted, atol=1e-6)
    assert torch.equal(layer.weight, table)
    steps(net, stage, 5)
    assert torch.equal(net.weight, reader), "the network was trained"
    assert not torch.equal(layer.weight, table)
    assert (layer.grouped.gates < 1).any()


def test_autosrh_folds_its_gates_in() -> None:
    net = model("autosrh(kept=400)")
    run_to(net, "retrain")
    layer = net.layer
    with torch.no_grad():
        layer.grouped.gates.uniform_(0.2, 1.0, generator=torch.Generator().manual_seed(0))
    scaled = layer.weight.detach() * layer.grouped.gates.detach()[layer.grouped.group.long()]
    before = layer.eval()(single_ids())
    staging.begin(net, layer.stages()[-1])
    assert torch.equal(layer.weight, scaled)
    assert torch.equal(layer.eval()(single_ids()), before)
    order = scaled.abs().flatten().argsort(descending=True)[:400]
    assert layer.masked.keep.flatten()[order].all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("deeplight(every=0)", "every must be at least 1"),
        ("deeplight(ramp=0)", "ramp must be at least 1"),
        ("pep(grain=number)", "grain must be one of"),
        ("pep(threshold=-150.0)", "threshold must be between"),
        ("autosrh(groups=0)", "groups must be 1 to 256"),
        ("autosrh(l1=-1.0)", "l1 must be finite"),
    ],
)
def test_bad_settings_are_named(spec: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(spec)


@pytest.mark.parametrize(("l1", "rate"), [(1e-5, 1.0), (0.0, 0.0)])
def test_autosrh_gates_of_absent_groups_move_by_the_penalty_alone(l1: float, rate: float) -> None:
    counts = {"x": np.array([9] * 10 + [0] * 10)}
    schema = fe.Schema([fe.Feature("x", 20)]).with_counts(counts)
    layer = fe.embedding(schema, f"autosrh(groups=2, alpha_lr=0.01, l1={l1})", dim=4)
    stage = layer.stages()[1]
    layer.begin_stage(stage)
    optimizer = fe.optim.build(layer, 0.02, stage=stage, split="held_out")[0]
    for step in range(1, 6):
        layer.zero_grad()
        (layer(torch.arange(10)[:, None]).sum() + layer.penalty()).backward()
        layer.after_backward()
        optimizer.step()
        layer.after_step(step)
    # 1e-5 / (1e-5 + 1e-8), nearly 1
    assert torch.allclose(layer.grouped.gates[0], torch.tensor(1 - 0.05 * rate), atol=1e-4)
