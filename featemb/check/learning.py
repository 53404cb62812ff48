"""Checks of how a layer learns: gradients, stages, resuming."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from featemb import optim
from featemb.check.case import (
    Case,
    LinearReader,
    TaskBatch,
    expect,
    mean_loss,
    single_ids,
    task,
)
from featemb.fit import fit


def check_gradients(case: Case) -> None:
    """Double-precision gradients agree with finite differences for every parameter."""
    layer = case.layer().double()
    ids = single_ids(5)
    reader = torch.randn(
        sum(layer.widths), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    for name, parameter in layer.named_parameters():
        base = parameter.detach().clone()

        def read(value: Tensor, name: str = name) -> Tensor:
            out = torch.func.functional_call(layer, {name: value}, (ids,))
            total: Tensor = (out.tanh() @ reader).sum()
            return total

        sample = _sampled(base)

        def part(values: Tensor, base: Tensor = base, sample: Tensor = sample) -> Tensor:
            return read(base.reshape(-1).index_put((sample,), values).view_as(base))

        values = base.reshape(-1)[sample].requires_grad_()
        holds = torch.autograd.gradcheck(part, (values,), raise_exception=False)
        expect(holds, f"the gradient of {name!r} is wrong")


def _sampled(parameter: Tensor, most: int = 200) -> Tensor:
    """Up to ``most`` positions spread over a parameter: finite differences are slow."""
    step = max(1, parameter.numel() // most)
    return torch.arange(0, parameter.numel(), step)


def check_data_reaches_every_parameter(case: Case) -> None:
    """Every trainable parameter gets a gradient from the data loss alone, without the penalty."""
    layer = case.layer()
    model = LinearReader(layer)
    for batch in task(8):
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
            expect(reached, f"the data loss gives {name!r} no gradient")


def check_row_gradients_agree(case: Case) -> None:
    """Row gradients hold the same numbers as dense gradients."""
    dense, sparse = case.layer(), case.layer()
    optim.RowAdam(sparse.parameters())
    batch = task(1)[0]
    for layer in (dense, sparse):
        _loss(LinearReader(layer), batch).backward()  # type: ignore[no-untyped-call]
    for (name, one), other in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            close = torch.allclose(one.grad, other.grad.to_dense(), atol=1e-6)
            expect(close, f"row gradient of {name!r} differs from the dense one")


def check_stages_learn(case: Case) -> None:
    """All stages run, and the loss falls clearly below that of a constant answer."""
    layer = case.layer()
    model, data = LinearReader(layer), task()
    labels = torch.cat([batch.label for batch in data])
    base = float(nn.functional.binary_cross_entropy(labels.mean().expand_as(labels), labels))
    before = mean_loss(model.eval(), data)
    history = fit(model, lambda epoch: data, lambda: -mean_loss(model, data), epochs=5, lr=0.03)
    after = mean_loss(model, data)
    expect(
        after < min(before, base - 0.003), f"loss {before:.4f} -> {after:.4f}, constant {base:.4f}"
    )
    expect(history.steps > 0 and len(history.records) > 0, "no step was recorded")


def check_resume_is_exact(case: Case) -> None:
    """Training resumed from a checkpoint equals training that was not interrupted."""
    data = task(12)
    straight = LinearReader(case.layer(seed=5))
    optimizers = _steps(straight, data[:6], None)
    checkpoint = copy.deepcopy((straight.state_dict(), [one.state_dict() for one in optimizers]))
    _steps(straight, data[6:], optimizers)
    resumed = LinearReader(case.layer(seed=6))
    resumed.load_state_dict(checkpoint[0])
    fresh = optim.build(resumed, lr=0.01)
    for optimizer, state in zip(fresh, checkpoint[1], strict=True):
        optimizer.load_state_dict(state)
    _steps(resumed, data[6:], fresh)
    for (name, one), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        expect(torch.equal(one, other), f"{name!r} differs after resuming")


def _steps(
    model: LinearReader, data: list[TaskBatch], optimizers: list[torch.optim.Optimizer] | None
) -> list[torch.optim.Optimizer]:
    """A user's own loop over one stage: the same public calls as `featemb.fit`."""
    optimizers = optimizers or optim.build(model, lr=0.01)
    for step, batch in enumerate(data, start=1):
        loss = _loss(model, batch) + model.layer.penalty()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        model.layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        model.layer.after_step(step)
    return optimizers


def _loss(model: nn.Module, batch: TaskBatch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
