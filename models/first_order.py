"""The first-order (linear) term, shared by lr, fm, deepfm and widedeep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featemb.models.base import ModelContext


class FirstOrder(nn.Module):
    """``b + sum_f w_f + sum_j u_j x_j``: w_f are the embedded ids, x_j the numeric columns.

    u and b start at zero.

    Attributes:
        bias: b, ``[1]``.
        weight: u, ``[M]``; None where M is 0.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.zeros(context.numeric)) if context.numeric else None

    def forward(self, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]`` of vectors ``[B, W]`` (all coordinates are summed) and ``[B, M]``."""
        total = vectors.sum(1) + self.bias
        if numeric is None or self.weight is None:
            return total
        return total + numeric @ self.weight
