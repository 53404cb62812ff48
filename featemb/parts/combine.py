"""Combine parts: L looked-up row vectors -> one vector; and `Lookup`, the whole chain."""

from __future__ import annotations

from torch import Tensor, nn

from featemb.parts.base import Part


class Concat(Part):
    """Concatenate the L vectors: ``[..., L, C] -> [..., L * C]``."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., L * C]``."""
        return vectors.flatten(-2)


class Lookup(Part):
    """``combine(rows(address(ids, feature)))``: the three steps of a feature embedding.

    Attributes:
        address: (ids, feature) -> rows ``[..., L]``.
        rows: rows ``[..., L]`` -> vectors ``[..., L, C]``: a `RowTable` in training, a codec's
            part when frozen.
        combine: vectors ``[..., L, C]`` -> ``[..., D]``.
    """

    address: nn.Module
    rows: nn.Module
    combine: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]`` for ids ``[...]`` and broadcastable features."""
        vectors: Tensor = self.combine(self.rows(self.address(ids, feature)))
        return vectors
