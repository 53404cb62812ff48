"""Combine parts: L looked-up row vectors -> one vector."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from featemb.parts.base import Part


class Concat(Part):
    """Concatenate the L vectors: ``[..., L, C] -> [..., L * C]``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., L * C]``."""
        return vectors.flatten(-2)


class Sum(Part):
    """Add the L vectors: ``[..., L, C] -> [..., C]``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., C]``."""
        return vectors.sum(-2)


class Mean(Part):
    """Average the L vectors: ``[..., L, C] -> [..., C]``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., C]``."""
        return vectors.mean(-2)


class Multiply(Part):
    """Multiply the L vectors elementwise: ``[..., L, C] -> [..., C]``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., C]``."""
        return reduce(torch.mul, vectors.unbind(-2))


class Stack(Part):
    """Leave the L vectors apart: ``[..., L, C]``, for a source that combines them itself."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., L, C]``."""
        return vectors
