"""`GatedRows`: a table whose rows are scaled by learned gates."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.masked import MaskedRows


class GatedRows(MaskedRows):
    """Rows times gates while they are learned, masked rows from then on (see `MaskedRows`).

    ``gate = sigmoid(g tau) / sigmoid(g_0)``, ``tau = temperature^min(1, steps / anneal)``.

    In training all rows are read, times their gates. In eval mode the kept rows are, times their
    gates, and the others are zero. Where ``masks_training`` the gates no longer count.

    Attributes:
        gates: the table of g, ``[R, 1]``.
        steps: int64 scalar, training steps made.
        temperature: tau at its end; it starts at 1.
        anneal: steps until then.
        start: g_0.
        read: row numbers of the last lookup in training, for a penalty on them.
    """

    memory_parts: ClassVar[dict[str, str]] = {"keep": "masks", "steps": "counters"}
    gates: nn.Module
    steps: Tensor
    temperature: float
    anneal: int
    start: float
    read: ClassVar[Tensor | None] = None

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        if self.masks_training:
            return super().forward(rows)
        vectors: Tensor = self.rows(rows)
        if self.training:
            self.read = rows  # type: ignore[misc]  # hides the default
            return vectors * self.gate(self.gates(rows))
        gated = vectors * self.exact_gate(self.gates(rows))
        return torch.where(self.keep[rows], gated, torch.zeros_like(gated))

    def tau(self) -> Tensor:
        """The sharpness of the gates at this moment, a float64 scalar."""
        progress = (self.steps.double() / self.anneal).clamp(max=1)
        return torch.pow(torch.full_like(progress, self.temperature), progress)

    def gate(self, logits: Tensor) -> Tensor:
        """Return the gates of numbers g, in their shape."""
        first = torch.sigmoid(logits.new_tensor(self.start))
        return torch.sigmoid(logits * self.tau().to(logits)) / first

    def exact_gate(self, logits: Tensor) -> Tensor:
        """Return the gates, by way of float64: the same bits wherever a number lies in a tensor.

        The vectorised float32 function may differ from the scalar one by its last bit.
        """
        return self.gate(logits.double()).to(logits.dtype)

    def values(self) -> Tensor:
        """Return the table, with the gates multiplied into its rows while they count."""
        weight = super().values()
        if self.masks_training:
            return weight
        return weight * self.exact_gate(self.gates.get_parameter("weight").detach())
