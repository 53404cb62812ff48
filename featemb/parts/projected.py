"""Narrow tables with a projection of each feature to the width of the vectors.

Shape letters: G features of one width w, D width of the vectors, h ids with c more columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.base import Part, Source

if TYPE_CHECKING:
    from featemb.codecs.base import Codec


class Projection(Part):
    """A matrix a feature: ``v W_f``.

    Attributes:
        weight: ``[G, w, D]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "decoder"}
    weight: Tensor

    def forward(self, vectors: Tensor, feature: Tensor) -> Tensor:
        """Return ``[..., D]`` for vectors ``[..., w]`` of broadcastable features."""
        if self.weight.shape[0] == 1:
            return vectors @ self.weight[0]
        return (vectors[..., None, :] @ self.weight[feature])[..., 0, :]

    def dense(self, vectors: Tensor) -> Tensor:
        """Return ``[B, G, D]`` for vectors ``[B, G, w]``."""
        return (vectors.transpose(0, 1) @ self.weight).transpose(0, 1)


class AffineProjection(Projection):
    """A matrix and a bias a feature: ``v W_f + b_f``.

    Attributes:
        weight: ``[G, w, D]``.
        bias: ``[G, D]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "decoder", "bias": "decoder"}
    bias: Tensor

    def forward(self, vectors: Tensor, feature: Tensor) -> Tensor:
        """Return ``[..., D]``."""
        return super().forward(vectors, feature) + self.bias[feature]

    def dense(self, vectors: Tensor) -> Tensor:
        """Return ``[B, G, D]``."""
        return super().dense(vectors) + self.bias


class Projected(Source):
    """``e(f, x) = E[address(x)] W_f``, of features of one width.

    Attributes:
        address: (ids, feature) -> rows ``[..., 1]``.
        rows: rows -> vectors ``[..., w]``.
        projection: vectors ``[..., w]`` and features -> ``[..., D]``.
    """

    by_number: ClassVar[bool] = True
    address: nn.Module
    rows: nn.Module
    projection: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        rows = self.address(ids, feature)[..., 0]
        vectors: Tensor = self.projection(self.rows(rows), feature)
        return vectors

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, G, D]``, by one product a feature."""
        rows = self.address(ids, torch.arange(ids.shape[1], device=ids.device))[..., 0]
        vectors: Tensor = self.projection.dense(self.rows(rows))  # type: ignore[operator]
        return vectors

    def frozen(self, codec: Codec) -> Part:
        """Encode the rows for what reads them."""
        return super().frozen(codec.at(self.address))


class Widened(Source):
    """A source of which some ids of one feature have more columns: ``e(f, x) + C[r(x)] U``.

    Attributes:
        base: the source, of all features.
        hot: (id, 0) -> rank r of an id that has the columns, or -1.
        columns: their numbers C, rows ``[h, c]``.
        directions: U, their rows of the projection, ``[c, D]``.
        feature: the feature.
    """

    by_number: ClassVar[bool] = True
    memory_parts: ClassVar[dict[str, str]] = {"directions": "decoder"}
    base: nn.Module
    hot: nn.Module
    columns: nn.Module
    directions: Tensor
    feature: int

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        vectors: Tensor = self.base(ids, feature)
        own = feature == self.feature
        return vectors + self._extra(torch.where(own, ids, 0), own)

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]``."""
        vectors: Tensor = self.base.dense(ids)  # type: ignore[operator]  # a source
        own, at = ids[:, self.feature], self.feature
        wider = vectors[:, at] + self._extra(own, torch.ones_like(own, dtype=torch.bool))
        return torch.cat([vectors[:, :at], wider[:, None], vectors[:, at + 1 :]], 1)

    def _extra(self, ids: Tensor, own: Tensor) -> Tensor:
        """Return ``C[r(x)] U`` for ids ``[...]`` where they are ``own`` and hot, else zeros."""
        rank = torch.where(own, self.hot(ids, torch.zeros_like(ids)), -1)
        if not self.training:
            found = self.columns(rank.clamp(min=0)) @ self.directions
            return torch.where((rank >= 0)[..., None], found, torch.zeros_like(found))
        # rows of other ids must not be touched: their moments would go on moving them
        flat = rank.reshape(-1)
        places = (flat >= 0).nonzero()[:, 0]
        found = self.columns(flat[places]) @ self.directions
        zeros = found.new_zeros(flat.shape[0], found.shape[1])
        extra: Tensor = zeros.index_copy(0, places, found).view(*rank.shape, -1)
        return extra
