"""Optimizers over groups, settings, checkpoints and whole models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.rows import RowTable

ROWS, WIDTH = 24, 4


def table() -> RowTable:
    return RowTable(ROWS, WIDTH, 0.1, torch.Generator().manual_seed(0))


def batches(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 16, (10,), generator=generator) for _ in range(count)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    optimizer.zero_grad()
    (model(rows).tanh() * torch.linspace(-1, 1.1, WIDTH)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("decoupled", [False, True])
def test_lazy_adam_is_its_formula(decoupled: bool) -> None:
    """Step by step in float64, one row at a time: untouched rows keep weights and moments."""
    ours, decay, lr = table().double(), 0.1, 0.03
    weight = ours.weight.detach().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    optimizer = optim.RowAdam(ours.parameters(), lr=lr, weight_decay=decay, decoupled=decoupled)
    for t, rows in enumerate(batches(), start=1):
        step(ours, optimizer, rows)
        leaf = weight.clone().requires_grad_()
        loss = (leaf[rows].tanh() * torch.linspace(-1, 1.1, WIDTH)).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        for row in set(rows.tolist()):
            g = grad[row]
            if decoupled:
                weight[row] *= 1 - lr * decay
            else:
                g = g + decay * weight[row]
            first[row] = 0.9 * first[row] + 0.1 * g
            second[row] = 0.999 * second[row] + 0.001 * g * g
            root = (second[row] / (1 - 0.999**t)).sqrt() + 1e-8
            weight[row] -= lr * first[row] / (1 - 0.9**t) / root
        # linspace is float32: so are the gradients' last digits
        assert torch.allclose(ours.weight, weight, atol=1e-7)
        assert torch.equal(ours.weight[16:], weight[16:])
    state = optimizer.state[ours.weight]
    assert torch.allclose(state["exp_avg"], first, atol=1e-6)
    assert float(state["step"]) == len(batches())


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_checkpoints_go_on_exactly(name: str) -> None:
    ours = table()
    optimizer = optim.OPTIMIZERS[name](ours.parameters(), lr=0.05)
    for rows in batches()[:4]:
        step(ours, optimizer, rows)
    again = table()
    fresh = optim.OPTIMIZERS[name](again.parameters(), lr=0.9)
    again.load_state_dict(ours.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for rows in batches()[4:]:
        step(ours, optimizer, rows)
        step(again, fresh, rows)
    assert torch.equal(ours.weight, again.weight)


def test_a_loaded_step_counter_follows_its_parameter() -> None:
    ours = table()
    optimizer = optim.RowAdam(ours.parameters())
    step(ours, optimizer, batches()[0])
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = saved["state"][0]["step"].double()
    optimizer.load_state_dict(saved)  # torch converts the counters of fused optimizers only
    assert optimizer.state[ours.weight]["step"].dtype == torch.float32


@pytest.mark.parametrize("name", ["row_adam", "row_adagrad", "row_sgd"])
def test_tables_added_later_get_row_gradients(name: str) -> None:
    late = table()
    optimizer = optim.OPTIMIZERS[name](nn.Linear(2, 2).parameters(), lr=0.1)
    optimizer.add_param_group({"params": list(late.parameters())})
    step(late, optimizer, batches()[0])
    assert late.weight.grad.is_sparse


def test_dense_adam_takes_row_gradients_back() -> None:
    ours = table()
    optim.RowAdam(ours.parameters())
    optimizer = optim.DenseAdam(ours.parameters(), lr=0.1, weight_decay=0.1)
    before = ours.weight.detach().clone()
    step(ours, optimizer, batches()[0])
    assert not ours.weight.grad.is_sparse
    assert (ours.weight[16:] != before[16:]).all(), "decay reaches every row"


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"weight_decay": -0.1}, {"lr": float("nan")}, {"eps": -1e-8}]
)
def test_settings_out_of_range_are_refused(name: str, settings: dict[str, Any]) -> None:
    if name == "row_sgd" and "eps" in settings:
        pytest.skip("SGD has no eps")
    word = next(iter(settings))
    with pytest.raises(fe.ConfigError, match=f"{word} must be >= 0"):
        optim.OPTIMIZERS[name](table().parameters(), **settings)
    with pytest.raises(fe.ConfigError, match=f"{word} must be >= 0"):
        optim.OPTIMIZERS[name]([{"params": table().parameters(), **settings}])


def test_betas_out_of_range_are_refused() -> None:
    with pytest.raises(fe.ConfigError, match="betas"):
        optim.RowAdam(table().parameters(), betas=(0.9, 1.0))
    with pytest.raises(fe.ConfigError, match="weight_decay"):
        optim.build(fe.check.Case("full").layer(), lr=0.1, weight_decay=-1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = fe.check.Case("full").layer()
        torch.manual_seed(3)
        self.mlp = nn.Sequential(nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.mlp(self.layer(ids)).squeeze(1)


def test_a_whole_model_trains_as_its_parts() -> None:
    """Embedding by lazy Adam, network by torch's Adam with its own decay: one call does both."""
    ours, apart = Net(), Net()
    (one,) = optim.build(ours, lr=0.02, net_weight_decay=0.1)
    parts = [
        optim.RowAdam(apart.layer.parameters(), lr=0.02),
        torch.optim.Adam(apart.mlp.parameters(), lr=0.02, weight_decay=0.1),
    ]
    for batch in fe.check.case.task(6, 32):
        for model, optimizers in ((ours, [one]), (apart, parts)):
            loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    for first, second in zip(ours.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


def test_groups_may_hold_a_generator() -> None:
    layer = fe.check.Case("full").layer()
    layer.param_groups = lambda lr: [{"params": layer.parameters(), "lr": lr}]  # type: ignore
    (made,) = optim.build(layer, lr=0.1)
    assert sum(len(group["params"]) for group in made.param_groups) == 1
