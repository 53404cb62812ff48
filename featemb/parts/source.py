"""Sources: (ids, feature) -> vectors, and how two of them make one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featemb.parts.base import Source


class Lookup(Source):
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


class DigitLookup(Source):
    """Rows of an id's digits, multiplied or added; a feature may use the first few digits only.

    Attributes:
        address: (ids, feature) -> rows ``[..., L]``.
        rows: rows ``[..., L]`` -> vectors ``[..., L, C]``.
        used: number of digits of each feature.
        multiply: whether to multiply rather than add.
    """

    address: nn.Module
    rows: nn.Module
    used: tuple[int, ...]
    multiply: bool

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        digits = self.rows(self.address(ids, feature)).unbind(-2)
        vectors: Tensor = digits[0]
        used = torch.tensor(self.used, device=ids.device)[feature][..., None]
        neutral = 1.0 if self.multiply else 0.0
        for number, digit in enumerate(digits[1:], start=1):
            other = torch.where(used > number, digit, neutral)
            vectors = vectors * other if self.multiply else vectors + other
        return vectors


class Product(Source):
    """Elementwise product of two sources; one of them may have width 1.

    Attributes:
        left: a source.
        right: a source.
    """

    left: nn.Module
    right: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        product: Tensor = self.left(ids, feature) * self.right(ids, feature)
        return product


class Plus(Source):
    """Sum of two sources; one of them may have width 1.

    Attributes:
        left: a source.
        right: a source.
    """

    left: nn.Module
    right: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        total: Tensor = self.left(ids, feature) + self.right(ids, feature)
        return total


class Weighted(Source):
    """Weighted sum of L looked-up vectors: ``e = sum_l w_l v_l``.

    Attributes:
        vectors: a source of ``[..., L, C]`` (see `Stack`).
        weights: a source of ``[..., L]``.
    """

    vectors: nn.Module
    weights: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        weights: Tensor = self.weights(ids, feature)
        total: Tensor = (self.vectors(ids, feature) * weights[..., None]).sum(-2)
        return total


class Split(Source):
    """Some features are served by one source, the others by another.

    Each source is made for its own features only, numbered from 0 in their order.

    Attributes:
        left: source of the features with ``to_right[f]`` false.
        right: source of the others; it gives vectors of the same width.
        to_right: which features the right source serves; both kinds occur.
    """

    left: nn.Module
    right: nn.Module
    to_right: tuple[bool, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``.

        In training each source sees its own ids only. Otherwise both compute and one is taken.
        """
        sides = (False, True)
        local = torch.tensor(_numbers(self.to_right), device=ids.device)[feature]
        right = torch.tensor(self.to_right, device=ids.device)[feature]
        if self.training:
            return self._apart(ids, local, right)
        left_vectors, right_vectors = (
            source(torch.where(right == side, ids, 0), torch.where(right == side, local, 0))
            for source, side in zip((self.left, self.right), sides, strict=True)
        )
        return torch.where(right[..., None], right_vectors, left_vectors)

    def _apart(self, ids: Tensor, local: Tensor, right: Tensor) -> Tensor:
        shape = (ids + local).shape
        ids, local, right = (one.expand(shape).reshape(-1) for one in (ids, local, right))
        places = [(right == side).nonzero()[:, 0] for side in (False, True)]
        vectors = torch.cat(
            [
                source(ids[own], local[own])
                for source, own in zip((self.left, self.right), places, strict=True)
            ]
        )
        joined = vectors.new_empty(vectors.shape).index_copy(0, torch.cat(places), vectors)
        return joined.view(*shape, vectors.shape[1])

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]``; each source computes its own columns only."""
        columns = [
            [f for f, is_right in enumerate(self.to_right) if is_right == side]
            for side in (False, True)
        ]
        parts = [
            source.dense(ids[:, own])  # type: ignore[operator]  # a source
            for source, own in zip((self.left, self.right), columns, strict=True)
        ]
        order = sorted(range(len(self.to_right)), key=[*columns[0], *columns[1]].__getitem__)
        return torch.cat(parts, 1)[:, order]


def _numbers(to_right: tuple[bool, ...]) -> list[int]:
    """Number the features of each side from 0."""
    seen = {False: 0, True: 0}
    numbers = []
    for side in to_right:
        numbers.append(seen[bool(side)])
        seen[bool(side)] += 1
    return numbers
