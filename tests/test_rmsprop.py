"""`RowRMSprop`: its formula, the steps between two reads, resuming."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.rows import RowTable, copy_rows, reset_rows

ROWS, WIDTH = 24, 4
READER = torch.linspace(-1, 1.1, WIDTH, dtype=torch.float64)


def table(width: int = WIDTH) -> RowTable:
    return RowTable(ROWS, width, 0.1, torch.Generator().manual_seed(0)).double()


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 16, (10,), generator=generator) for _ in range(count)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    optimizer.zero_grad()
    out = model(rows)
    (out.tanh() * READER[: out.shape[1]]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("width", [WIDTH, 1])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_it_is_its_formula(decay: float, width: int) -> None:
    """Step by step, one row at a time."""
    ours, lr, beta = table(width), 0.03, 0.9
    weight = ours.weight.detach().clone()
    second, last = [0.0] * ROWS, [0] * ROWS
    optimizer = optim.RowRMSprop(ours.parameters(), lr=lr, beta=beta, weight_decay=decay)
    for number, rows in enumerate(batches(9), start=1):
        step(ours, optimizer, rows)
        for row in sorted(set(rows.tolist())):
            times = int((rows == row).sum())
            grad = times * READER[:width] * (1 - weight[row].tanh() ** 2)
            gap = number - last[row] if last[row] else 1
            mean = float(grad.square().mean())
            second[row] = beta**gap * second[row] + (1 - beta) * mean
            root = math.sqrt(second[row] / (1 - beta**number)) + 1e-8
            weight[row] = (weight[row] - lr * grad / root) / (1 + lr * decay * gap / root)
            last[row] = number
        assert torch.allclose(ours.weight, weight, rtol=1e-12)
    untouched = [row for row in range(ROWS) if not last[row]]
    assert untouched
    assert torch.equal(ours.weight[untouched], table(width).weight[untouched])


def test_with_rows_of_one_number_read_always_it_is_adam_without_momentum() -> None:
    ours, plain = table(1), nn.Parameter(table(1).weight.detach().clone())
    mine = optim.RowRMSprop(ours.parameters(), lr=0.02)
    theirs = torch.optim.Adam([plain], lr=0.02, betas=(0.0, 0.999))
    rows = torch.arange(ROWS)
    for scale in (1.0, 0.3, 2.0, -1.0):
        for optimizer, source in ((mine, ours(rows)), (theirs, plain)):
            optimizer.zero_grad()
            (source.sin() * scale).sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, plain, rtol=1e-9)


def test_second_moments_are_those_of_the_dense_optimizer() -> None:
    """Where a row is read a third of the time: the same as with zero gradients in between."""
    ours, plain = table(1), nn.Parameter(table(1).weight.detach().clone())
    mine = optim.RowRMSprop(ours.parameters(), lr=0.02, beta=0.99)
    theirs = torch.optim.Adam([plain], lr=0.02, betas=(0.0, 0.99))
    for number in range(9):
        mine.zero_grad()
        plain.grad = torch.zeros_like(plain)
        rows = torch.arange(ROWS)[torch.arange(ROWS) % 3 == number % 3]
        (ours(rows).sin() * 0.7).sum().backward()
        plain.grad[rows] = 0.7 * plain.detach()[rows].cos()
        mine.step()
        theirs.step()
    assert torch.allclose(ours.weight, plain, rtol=1e-9)


def test_decay_counts_the_steps_between_and_never_passes_zero() -> None:
    """Zero gradients, after one read that sets the second moment: only the decay is left."""
    ours, lr, decay = table(), 0.01, 0.5
    optimizer = optim.RowRMSprop(ours.parameters(), lr=lr, weight_decay=decay)
    step(ours, optimizer, torch.arange(ROWS))
    start = ours.weight.detach().clone()
    second = optimizer.state[ours.weight]["second"].clone()
    for number in range(2, 30):
        optimizer.zero_grad()
        rows = torch.tensor([0, 1] if number == 29 else [0])
        (ours(rows) * 0).sum().backward()
        optimizer.step()
    root = (second[1] * 0.999**28 / (1 - 0.999**29)).sqrt() + 1e-8
    assert torch.allclose(ours.weight[1], start[1] / (1 + lr * decay * 28 / root), rtol=1e-9)
    shrunk = (ours.weight / start).detach()
    assert (shrunk[:2] > 0).all()
    assert (shrunk[:2] < 1).all()
    assert torch.equal(shrunk[2:], torch.ones(ROWS - 2, WIDTH, dtype=torch.float64))
    # often or rarely, to first order it is the same decay
    assert torch.allclose(shrunk[0, 0].log(), shrunk[1, 0].log(), rtol=0.35)


def test_plain_parameters_have_one_moment_an_element() -> None:
    linear = nn.Linear(3, 2).double()
    plain = copy.deepcopy(linear)
    mine = optim.RowRMSprop(linear.parameters(), lr=0.02)
    theirs = torch.optim.Adam(plain.parameters(), lr=0.02, betas=(0.0, 0.999))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        for optimizer, model in ((mine, linear), (theirs, plain)):
            optimizer.zero_grad()
            model(x).sin().sum().backward()
            optimizer.step()
    assert torch.allclose(linear.weight, plain.weight, rtol=1e-9)
    assert torch.allclose(linear.bias, plain.bias, rtol=1e-9)


def test_training_resumes_exactly() -> None:
    ours, again = table().float(), table().float()
    optimizer = optim.RowRMSprop(ours.parameters(), lr=0.02, weight_decay=0.1)
    data = batches(12)
    for rows in data[:6]:
        step(ours, optimizer, rows)
    again.load_state_dict(ours.state_dict())
    other = optim.RowRMSprop(again.parameters(), lr=0.02, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for rows in data[6:]:
        step(ours, optimizer, rows)
        step(again, other, rows)
    assert torch.equal(ours.weight, again.weight)
    for name, value in optimizer.state[ours.weight].items():
        assert torch.equal(value, other.state[again.weight][name])


def test_state_moves_with_its_row() -> None:
    ours = table()
    optimizer = optim.RowRMSprop(ours.parameters(), lr=0.02)
    for rows in batches(3):
        step(ours, optimizer, rows)
    state = optimizer.state[ours.weight]
    row = int(state["last"].argmax())
    copy_rows(ours.weight, torch.tensor([row]), torch.tensor([20]))
    assert torch.equal(state["second"][20], state["second"][row])
    assert float(state["last"][20]) == 3
    reset_rows(ours.weight, torch.tensor([row]), torch.zeros(1, WIDTH, dtype=torch.float64))
    assert float(state["second"][row]) == float(state["last"][row]) == 0


def test_its_state_is_two_numbers_a_row() -> None:
    layer = fe.embedding(fe.Schema([fe.Feature("a", 1000)]), "full", dim=16)
    optimizer = optim.RowRMSprop(layer.parameters())
    layer(torch.tensor([[3]])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert layer.memory(optimizer).training == 1000 * (64 + 8) + 8


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"beta": 1.0}, {"weight_decay": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(fe.ConfigError, match=next(iter(settings))):
        optim.RowRMSprop(table().parameters(), **settings)


@pytest.mark.parametrize("name", [*optim.OPTIMIZERS])
def test_allocated_state_is_that_of_a_step(name: str) -> None:
    """Plans count the state before a step has made it."""
    layers = [fe.embedding(fe.Schema([fe.Feature("a", 50)]), "full", dim=4) for _ in range(2)]
    early, late = (optim.build(layer, 0.1, name)[0] for layer in layers)
    early.allocate()
    layers[1](torch.tensor([[3]])).sum().backward()
    late.step()
    late.zero_grad()
    assert layers[0].memory(early).training == layers[1].memory(late).training
