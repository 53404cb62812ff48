"""The stages of a whole model: what a training loop calls between its batches.

A model may hold several embedding layers (companions of first-order weights). Its stages are those
of the layer with most of them; a layer that does not list a stage is trained on as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from featemb.errors import RunError
from featemb.history import Batch
from featemb.layer import FeatureEmbedding, PartsEmbedding, outermost
from featemb.stage import Stage


def layers(model: nn.Module) -> list[FeatureEmbedding]:
    """Return the embedding layers of a model; a composition is one layer.

    Raises:
        RunError: there is none.
    """
    found = outermost([model])
    if not found:
        raise RunError("the model holds no featemb.FeatureEmbedding, there is nothing to fit")
    return found


def stages(model: nn.Module) -> tuple[Stage, ...]:
    """Return the stages of a model: those of the embedding layer that has most."""
    return max((layer.stages() for layer in layers(model)), key=len)


def rewinds(model: nn.Module) -> bool:
    """Whether a stage rewinds the model, so that its start must be kept."""
    return any(stage.weights == "initial" for stage in stages(model))


def begin(model: nn.Module, stage: Stage, start: Mapping[str, Any] | None = None) -> None:
    """Begin a stage: rewind the model where the stage says so, and tell every layer that lists it.

    Args:
        model: any module with embedding layers.
        stage: one of `stages`.
        start: a copy of the model's state dict from before its first stage; needed to rewind.

    Raises:
        RunError: the stage rewinds and there is no start.
    """
    if stage.weights == "initial":
        if start is None:
            raise RunError(f"stage {stage.name!r} rewinds the model: its start is needed")
        rewind(model, start)
    for layer in _listing(model, stage):
        layer.begin_stage(stage)


def rewind(model: nn.Module, start: Mapping[str, Any]) -> None:
    """Load a state dict, except what the layers name as their ``architecture``."""
    state = dict(start)
    for prefix, module in model.named_modules():
        if isinstance(module, FeatureEmbedding):
            own = dict(module.named_parameters()) | dict(module.named_buffers())
            for name in module.architecture:
                state[f"{prefix}.{name}" if prefix else name] = own[name].detach().clone()
    model.load_state_dict(state)


def update(
    model: nn.Module,
    layers: Sequence[FeatureEmbedding],
    batch: Batch,
    optimizers: Iterable[torch.optim.Optimizer],
) -> Tensor:
    """Make one step of some optimizers on a batch; return the data loss.

    Args:
        model: any module with embedding layers; it gives logits ``[B]``.
        layers: its `layers`.
        batch: what it reads, and the labels; it may have a ``weight`` of each sample's loss.
        optimizers: those that step.
    """
    inputs = (batch.ids,) if batch.numeric is None else (batch.ids, batch.numeric)
    weight = getattr(batch, "weight", None)  # what makes the ranks' means that of the whole batch
    loss = binary_cross_entropy_with_logits(model(*inputs), batch.label, weight)
    total = loss + sum(layer.penalty() for layer in layers)
    model.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.after_backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def search(model: nn.Module, stage: Stage, evaluate: Callable[[], float]) -> None:
    """Run a search stage, in eval mode without gradients; the model is in training mode after."""
    model.eval()
    with torch.no_grad():
        for layer in _listing(model, stage):
            layer.search(stage, evaluate)
    model.train()


def _listing(model: nn.Module, stage: Stage) -> list[FeatureEmbedding]:
    return [layer for layer in layers(model) if stage.name in [one.name for one in layer.stages()]]


class StagedEmbedding(PartsEmbedding):
    """A layer that knows its stage; the stage travels in the state dict.

    Attributes:
        stage: name of the stage that has begun last, or "" before the first.
    """

    stage: str = ""

    def begin_stage(self, stage: Stage) -> None:
        """Note the stage."""
        self.stage = stage.name
        self.entered()

    def entered(self) -> None:
        """Set what follows from the stage alone; called too after a state dict was loaded."""

    def get_extra_state(self) -> Tensor:
        """Return the number of the stage."""
        return torch.tensor(self._names().index(self.stage))

    def set_extra_state(self, state: Tensor) -> None:
        """Take the number of the stage."""
        self.stage = self._names()[int(state)]
        self.entered()

    def _names(self) -> list[str]:
        return ["", *(stage.name for stage in self.stages())]
