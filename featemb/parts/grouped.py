"""`GroupedRows`: rows whose columns are scaled by gates that groups of ids share."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from featemb.parts.masked import MaskedRows


class GroupedRows(MaskedRows):
    """Rows times the gates of their group, masked rows once the gates are folded in.

    Attributes:
        gates: parameter alpha ``[G, C]``.
        group: uint8 ``[R]``, group of each row.
    """

    memory_parts: ClassVar[dict[str, str]] = {"keep": "masks", "group": "groups", "gates": "gates"}
    gates: Tensor
    group: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        if self.masks_training:
            return super().forward(rows)
        vectors: Tensor = self.rows(rows) * self.gates[self.group[rows].long()]
        if self.training:
            return vectors
        return torch.where(self.keep[rows], vectors, torch.zeros_like(vectors))

    def values(self) -> Tensor:
        """Return the table, with the gates multiplied in while they are apart."""
        weight = super().values()
        if self.masks_training:
            return weight
        return weight * self.gates.detach()[self.group.long()]
