"""Checks of how a layer learns: gradients, stages, resuming."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from featemb import optim, staging
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
from featemb.layer import FeatureEmbedding
from featemb.stage import Stage


def check_gradients(case: Case) -> None:
    """Double-precision gradients agree with finite differences for every parameter.

    A layer whose training is not smooth (random masks, surrogate gradients) is checked in eval
    mode, for the parameters that move its answers there.
    """
    layer = case.layer().double()
    if not layer.smooth:
        layer.eval()
    ids = single_ids(5)
    reader = torch.randn(
        sum(layer.widths), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    moving = layer(ids).sum()
    assert isinstance(moving, Tensor)
    for name, parameter in layer.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.layout != torch.strided:  # stands for rows of a format without neighbours
            continue
        if torch.autograd.grad(moving, parameter, retain_graph=True, allow_unused=True)[0] is None:
            expect(not layer.smooth, f"the answers do not depend on {name!r}")
            continue
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
    """Every trainable parameter gets a gradient from the data loss alone, without the penalty.

    Those that a layer names in ``trained_by_penalty`` must get theirs from the penalty.
    """
    layer = case.layer()
    model = LinearReader(layer)
    for batch in task(8):
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
    pulled = _trained_by_penalty(layer)
    for gradient in torch.autograd.grad(layer.penalty(), pulled) if pulled else ():
        expect(gradient.to_dense().abs().sum() > 0, "the penalty does not reach what it trains")
    alone = set(map(id, pulled))
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad and id(parameter) not in alone:
            reached = parameter.grad is not None and parameter.grad.abs().sum() > 0
            expect(reached, f"the data loss gives {name!r} no gradient")


def _trained_by_penalty(layer: FeatureEmbedding) -> list[nn.Parameter]:
    """Parameters that the penalty alone trains, as codewords that are pulled to their rows."""
    named = [(one, getattr(one, "trained_by_penalty", ())) for one in layer.modules()]
    return [one.get_parameter(name) for one, names in named for name in names]


def check_row_gradients_agree(case: Case) -> None:
    """Row gradients hold the same numbers as dense gradients."""
    dense, sparse = case.layer(), case.layer()
    optim.RowAdam(sparse.parameters())
    batch = task(1)[0]
    for layer in (dense, sparse):
        _loss(LinearReader(layer), batch).backward()  # type: ignore[no-untyped-call]
    for (name, one), other in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            close = torch.allclose(one.grad.to_dense(), other.grad.to_dense(), atol=1e-6)
            expect(close, f"row gradient of {name!r} differs from the dense one")


def check_stages_learn(case: Case) -> None:
    """All stages run, and the loss falls clearly below that of a constant answer."""
    layer = case.layer()
    model, data = LinearReader(layer), task()
    labels = torch.cat([batch.label for batch in data])
    base = float(nn.functional.binary_cross_entropy(labels.mean().expand_as(labels), labels))
    before = mean_loss(model.eval(), data)
    history = fit(
        model,
        lambda epoch: data,
        lambda: -mean_loss(model, data),
        held_out=lambda epoch: data,
        epochs=5,
        lr=0.03,
    )
    after = mean_loss(model, data)
    expect(
        after < min(before, base - 0.003), f"loss {before:.4f} -> {after:.4f}, constant {base:.4f}"
    )
    expect(history.steps > 0 and len(history.records) > 0, "no step was recorded")


def check_resume_is_exact(case: Case) -> None:
    """Training resumed from a checkpoint, in any stage, equals one that was not interrupted."""
    for number, stage in enumerate(case.layer().stages()):
        if stage.kind == "train":
            _check_resume(case, number)


def _check_resume(case: Case, number: int) -> None:
    """Interrupt the stage of a number in its middle."""
    data = task(12)
    straight, resumed = (LinearReader(case.layer(seed=seed)) for seed in (5, 6))
    stage = straight.layer.stages()[number]
    optimizers = _stages_before(straight, number, data[:6])
    _steps(straight, data[:6], stage, optimizers)
    checkpoint = copy.deepcopy(
        (straight.state_dict(), [one.state_dict() for one in chain(*optimizers)])
    )
    _steps(straight, data[6:], stage, optimizers)
    resumed.load_state_dict(checkpoint[0])
    fresh = _optimizers(resumed, stage)
    for optimizer, state in zip(chain(*fresh), checkpoint[1], strict=True):
        optimizer.load_state_dict(state)
    _steps(resumed, data[6:], stage, fresh)
    for (name, one), other in zip(
        straight.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        expect(torch.equal(one, other), f"{name!r} differs after resuming in {stage.name!r}")


Optimizers = tuple[list[torch.optim.Optimizer], list[torch.optim.Optimizer]]


def _optimizers(model: LinearReader, stage: Stage) -> Optimizers:
    """Those of training batches and those of held-out batches."""
    made = [optim.build(model, lr=0.01, stage=stage, split=split) for split in _SPLITS]
    return made[0], made[1]


_SPLITS = ("train", "held_out")


def _stages_before(model: LinearReader, number: int, data: list[TaskBatch]) -> Optimizers:
    """Go through the stages before one, a few steps each, and begin it; return its optimizers."""
    start = copy.deepcopy(model.state_dict())
    optimizers: Optimizers | None = None
    for stage in model.layer.stages()[: number + 1]:
        staging.begin(model, stage, start)
        if stage.kind == "search":
            staging.search(model, stage, lambda: -mean_loss(model, data))
            continue
        if optimizers is None or stage.optimizer == "new":
            optimizers = _optimizers(model, stage)
        if stage.name != model.layer.stages()[number].name:
            _steps(model, data, stage, optimizers)
    assert optimizers is not None
    return optimizers


def _steps(
    model: LinearReader, data: list[TaskBatch], stage: Stage, optimizers: Optimizers
) -> None:
    """A user's own loop over one stage: the same public calls as `featemb.fit`."""
    model.train()
    for step, batch in enumerate(data, start=1):
        for used in optimizers if stage.held_out else optimizers[:1]:
            loss = _loss(model, batch) + model.layer.penalty()
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            model.layer.after_backward()
            for optimizer in used:
                optimizer.step()
        model.layer.after_step(step)


def _loss(model: nn.Module, batch: TaskBatch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
