"""Whether losses and weights are finite: what is not must not be trained on, nor be saved."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Losses:
    """Losses of the steps since the last evaluation, as they lie on the device.

    Args:
        model: where it is trained by several processes (it has ``mean_of_ranks``), each has the
            losses of its own rows, and the means are those of all.

    Attributes:
        values: one scalar a step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.values: list[Tensor] = []
        self._seen = 0
        self._of_all: Callable[[Tensor], Tensor] = getattr(model, "mean_of_ranks", Tensor.detach)

    def first_bad(self) -> tuple[int, float] | None:
        """Look at the losses since the last look; return the first that is not finite.

        Returns:
            How many steps ago it was, 0 for the last step, and its value; None where all are.
        """
        if self._seen == len(self.values):
            return None
        values = torch.stack(self.values[self._seen :])
        bad = torch.nonzero(~torch.isfinite(values))
        if len(bad):
            return len(values) - 1 - int(bad[0]), float(values[bad[0]])
        self._seen = len(self.values)
        return None

    def mean(self) -> float:
        """Return their mean."""
        return float(self._of_all(torch.stack(self.values)).mean())

    def clear(self) -> None:
        """Forget them."""
        self.values, self._seen = [], 0

    def state(self) -> Tensor | None:
        """Return what a checkpoint keeps."""
        return self._of_all(torch.stack(self.values)) if self.values else None

    def restore(self, state: Tensor | None) -> None:
        """Take what `state` gave."""
        self.values, self._seen = ([] if state is None else list(state.unbind())), 0


def bad_weight(model: nn.Module) -> str | None:
    """Return the name of a parameter that holds NaN or infinity; None where none does."""
    for name, parameter in model.named_parameters():
        if parameter.layout != torch.strided:  # stands for rows of its layer, and holds none itself
            continue
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        low, high = torch.aminmax(parameter.detach())  # one pass, and no copy of a large table
        if not (math.isfinite(low) and math.isfinite(high)):
            return name
    return None
