"""ALPT: steps that are trained, by their formula; grains, frozen forms, bytes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.adaptive import SMALLEST, AdaptiveTable
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.memory import tensor_bytes
from featemb.parts.stepped import GroupSteppedRows, SteppedRows, group_of

N = 147
STARTS = (0, 97, 138, 145)


def made(
    grain: str = "row", bits: int = 8, adam: bool = False, step_lr: float = 0.1, num: int = 20
) -> AdaptiveTable:
    weight = torch.empty(num, 3).uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(0))
    groups = {"row": num, "feature": 3, "table": 1}[grain]
    step = torch.empty(groups, 1).uniform_(0.003, 0.02, generator=torch.Generator().manual_seed(1))
    starts = (0, 4, 11) if grain == "feature" else ()
    return AdaptiveTable(weight, f"int{bits}", step, 7, starts, step_lr, adam)


def everything(table: AdaptiveTable) -> Tensor:
    return table.read(torch.arange(table.num_rows))


def fake_quantised(w: Tensor, step: Tensor, bits: int, factor: float) -> Tensor:
    """LSQ's quantiser, whose gradients autograd finds: straight through, step scaled."""
    half = 2 ** (bits - 1)
    scaled = step * factor
    step = (step - scaled).detach() + scaled
    inside = (w / step).clamp(-half, half - 1)
    return (inside + (inside.round() - inside).detach()) * step


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("grain", ["row", "feature", "table"])
def test_the_gradient_of_a_step_is_that_of_the_fake_quantiser(grain: str, bits: int) -> None:
    """By autograd over the plain formula, for numbers inside, at and far beyond the range."""
    table = made(grain, bits).double()
    rows = torch.tensor([0, 3, 4, 10, 11, 19])
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 3, dtype=torch.float64, generator=generator) * 0.2
    weight[1], weight[4, 0] = 900.0, -900.0
    grad = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    groups, found = table._gradient(rows, weight, grad)

    step = table.step.clone().requires_grad_()
    index = {
        "row": rows,
        "feature": torch.tensor([0, 0, 1, 1, 2, 2]),
        "table": torch.zeros(6).long(),
    }
    factor = 1 / math.sqrt(6 * 3 * (2 ** (bits - 1) - 1))
    values = fake_quantised(weight, step[index[grain]], bits, factor)
    (values * grad).sum().backward()
    assert step.grad is not None
    assert torch.allclose(found, step.grad[groups], rtol=1e-9)
    untouched = [g for g in range(len(step)) if g not in groups.tolist()]
    assert not step.grad[untouched].any()
    assert groups.tolist() == sorted(set(index[grain].tolist()))


def test_a_write_moves_steps_then_rounds_to_them() -> None:
    """Plain descent on the step; the row is then a multiple of the new step beside its value."""
    table = made(step_lr=0.05)
    rows, weight = torch.tensor([2, 9]), torch.tensor([[0.1, -0.2, 0.05], [0.3, 0.31, -0.1]])
    grad = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]])
    before = table.step.clone()
    _, gradient = table._gradient(rows, weight, grad)
    table.write(rows, weight, grad)
    wanted = before.clone()
    wanted[rows] -= 0.05 * gradient
    assert torch.equal(table.step, wanted)
    assert not torch.equal(table.step, before)
    number = weight / wanted[rows]
    codes = table.codes[rows].float() - 128
    assert ((codes == number.floor()) | (codes == number.ceil())).all()


@pytest.mark.parametrize("grain", ["row", "feature", "table"])
def test_steps_follow_adam(grain: str) -> None:
    """Adam of torch over the touched steps; lazily: the others keep moments and values."""
    table, lr = made(grain, adam=True, step_lr=1e-4), 1e-4
    reference = table.step.clone().double()
    first, second = torch.zeros_like(reference), torch.zeros_like(reference)
    generator = torch.Generator().manual_seed(3)
    for number in range(1, 8):
        rows = torch.randperm(20, generator=generator)[:6].sort().values
        weight = everything(table)[rows] + torch.randn(6, 3, generator=generator) * 0.01
        grad = torch.randn(6, 3, generator=generator)
        groups, gradient = (one.double() for one in table._gradient(rows, weight, grad))
        index = groups.long()
        first[index] += 0.1 * (gradient - first[index])
        second[index] += 0.001 * (gradient.square() - second[index])
        root = (second[index] / (1 - 0.999**number)).sqrt() + 1e-8
        reference[index] -= lr * first[index] / (1 - 0.9**number) / root
        table.write(rows, weight, grad)
        assert torch.allclose(table.step.double(), reference, rtol=1e-4, atol=1e-9)


def test_steps_stay_positive() -> None:
    table = made(step_lr=1e6)
    for _ in range(3):
        weight = everything(table)
        table.write(torch.arange(20), weight, torch.randn(20, 3))
    assert float(table.step.min()) >= SMALLEST
    assert (table.step == SMALLEST).any()
    assert torch.isfinite(everything(table)).all()


def test_a_learning_rate_of_zero_keeps_the_steps() -> None:
    for adam in (False, True):
        table = made(adam=adam, step_lr=0.0)
        before = table.step.clone()
        table.write(torch.arange(20), everything(table) + 0.01, torch.ones(20, 3))
        assert torch.equal(table.step, before)


def test_a_row_beyond_its_range_grows_its_step() -> None:
    """A number pushed outwards is clipped until the step has grown enough to hold it."""
    schema = fe.Schema([fe.Feature("a", 4)])
    spec = "alpt(reach=0.1, step_lr=0.001, optimizer=sgd, rate=1.0, init=0.02)"
    layer = fe.embedding(schema, spec, dim=4)
    (optimizer,) = optim.build(LinearReader(layer), lr=0.05, optimizer="row_sgd")
    table = layer.source.rows
    first = table.step.clone()
    for _ in range(300):
        optimizer.zero_grad()
        (layer(torch.tensor([[1]])) - 0.5).square().sum().backward()
        optimizer.step()
    assert float(first[1]) == pytest.approx(0.1 / 128)
    assert torch.equal(table.step[[0, 2, 3]], first[[0, 2, 3]])
    assert float(table.step[1]) > 0.45 / 128
    assert layer(torch.tensor([[1]])).detach() == pytest.approx(torch.full((1, 4), 0.5), abs=0.02)


def test_groups_are_found_by_their_first_rows() -> None:
    rows = torch.tensor([0, 96, 97, 137, 138, 144, 145, 146])
    assert group_of(rows, STARTS).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert group_of(rows, (0,)).tolist() == [0] * 8


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("grain", "groups"), [("row", N), ("feature", 4), ("table", 1)])
def test_bytes_are_the_formula(grain: str, groups: int, bits: int) -> None:
    for step_optimizer, moments in (("adam", 8), ("sgd", 0)):
        spec = f"alpt(bits={bits}, grain={grain}, step_optimizer={step_optimizer})"
        for device in ("cpu", "meta"):
            memory = fe.embedding(SINGLE, spec, dim=8, device=device).memory()
            assert memory.serving == N * bits + 4 * groups
            assert memory.training == N * bits + (4 + moments) * groups + 16


def trained(spec: str) -> tuple[Any, list[torch.optim.Optimizer]]:
    model = LinearReader(fe.embedding(SINGLE, spec, dim=8, seed=0))
    optimizers = optim.build(model, lr=0.05)
    run(model, optimizers, 0, 6)
    return model, optimizers


def run(model: nn.Module, optimizers: list[torch.optim.Optimizer], first: int, last: int) -> None:
    for batch in task(12)[first:last]:
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


SPECS = ["alpt", "alpt(bits=16, grain=table)", "alpt(grain=feature, step_optimizer=sgd)"]


@pytest.mark.parametrize("spec", SPECS)
def test_training_bytes_are_all_live_tensors(spec: str) -> None:
    model, optimizers = trained(spec)
    layer = model.layer
    handle = next(layer.parameters())
    live = [handle, *layer.buffers(), handle.grad]
    live += [
        value
        for one in optimizers
        for value in one.state.get(handle, {}).values()
        if isinstance(value, Tensor)
    ]
    assert layer.memory(optimizers).training == sum(map(tensor_bytes, live))


@pytest.mark.parametrize("spec", SPECS)
def test_the_frozen_form_has_the_trained_steps(spec: str) -> None:
    model, _ = trained(spec)
    layer, ids = model.layer.eval(), single_ids()
    frozen = layer.freeze()
    part = frozen.source.rows
    assert type(part) is (GroupSteppedRows if "feature" in spec else SteppedRows)
    assert torch.equal(part.step, layer.source.rows.step)
    assert (part.step != part.step[0, 0]).any() or "table" in spec
    assert torch.equal(frozen(ids), layer(ids))


@pytest.mark.parametrize("spec", SPECS)
def test_copies_go_on_alike(spec: str) -> None:
    """Deep copies, and state dicts with optimizer states in a layer of another seed."""
    model, optimizers = trained(spec)
    twin, paired = copy.deepcopy((model, optimizers))
    other = LinearReader(fe.embedding(SINGLE, spec, dim=8, seed=99))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    theirs = optim.build(other, lr=0.05)
    for mine, one in zip(optimizers, theirs, strict=True):
        one.load_state_dict(copy.deepcopy(mine.state_dict()))
    for each, its in ((model, optimizers), (twin, paired), (other, theirs)):
        run(each, its, 6, 12)
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
        assert torch.equal(value, other.state_dict()[key]), key


def test_numbers_that_are_not_finite_move_nothing() -> None:
    table = made(adam=True)
    before = copy.deepcopy(table.state_dict())
    weight = torch.zeros(2, 3)
    weight[0, 1] = math.nan
    with pytest.raises(fe.DataError, match="row 4 is not finite"):
        table.write(torch.tensor([4, 9]), weight, torch.ones(2, 3))
    assert all(torch.equal(before[key], value) for key, value in table.state_dict().items())


@pytest.mark.parametrize(
    "spec",
    [
        "alpt(bits=4)",
        "alpt(grain=column)",
        "alpt(step_lr=-1.0)",
        "alpt(step_optimizer=lion)",
        "alpt(optimizer=lion)",
        "alpt(reach=0.0)",
        "alpt(rate=0.0)",
    ],
)
def test_settings_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(fe.ConfigError, match="alpt"):
        fe.parse(spec)
