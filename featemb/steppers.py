"""The optimizers of a training, their states, and how their learning rates fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from featemb import optim
from featemb.history import Settings
from featemb.stage import Stage


def make(model: nn.Module, settings: Settings, stage: Stage, split: str) -> list[Optimizer]:
    """Make the optimizers of a stage for the batches of a split, "train" or "held_out"."""
    return optim.build(
        model,
        settings.lr,
        settings.optimizer,
        settings.weight_decay,
        settings.net_weight_decay,
        stage=stage,
        split=split,
    )


def load(optimizers: Iterable[Optimizer], states: Iterable[Mapping[str, Any]]) -> None:
    """Load the optimizers' states.

    Raises:
        LookupError, TypeError, ValueError: they are of others.
    """
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(dict(state))


def fall(optimizers: Iterable[Optimizer], epoch: int, begun: int | None, falling: int) -> None:
    """Set the rates of an epoch: those that the optimizers were made with, times a step.

    Args:
        optimizers: their groups keep the rates that they were made with.
        epoch: number of the epoch.
        begun: number of the epoch in which the rates begin to fall; None: not yet.
        falling: epochs until they are zero.
    """
    factor = 1.0 if begun is None else 1 - (epoch - begun + 0.5) / falling
    for group in (group for one in optimizers for group in one.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * min(factor, 1.0)


def decay(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Multiply the rates."""
    for group in (group for one in optimizers for group in one.param_groups):
        group["lr"] *= factor
