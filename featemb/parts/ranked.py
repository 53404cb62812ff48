"""Rows in the order of how often their ids occur, over all features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.base import Part


class RankedAddress(Part):
    """Row of an id = its place when the ids of all features are sorted by frequency, in groups.

    The order is cut into groups of ``size`` ids; within a group ids are sorted by feature, then by
    their place in the feature. So the ids of a feature in a group follow each other, and what is
    stored is where each group begins in each feature.

    Attributes:
        bounds: int32 ``[F, G + 1]``, place in its feature of the first id of each group, and n_f.
        size: ids a group; the last group may have fewer.
        first: place of id 0 in its feature; all other ids are in order.
    """

    memory_parts: ClassVar[dict[str, str]] = {"bounds": "remap"}
    bounds: Tensor
    size: int
    first: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        bounds = self.bounds.long()
        groups = bounds.shape[1] - 1
        first = torch.tensor(self.first, device=ids.device)[feature]
        place = torch.where(ids == 0, first, ids - (ids <= first).long())
        flat, base = bounds.view(-1), feature * (groups + 1)
        low = torch.zeros_like(ids + feature)
        high = torch.full_like(low, groups)
        for _ in range(groups.bit_length()):  # the last group that begins at or before the place
            middle = (low + high) >> 1
            after = flat[base + middle] <= place
            low, high = torch.where(after, middle, low), torch.where(after, high, middle)
        lengths = bounds[:, 1:] - bounds[:, :-1]
        before = lengths.cumsum(0) - lengths
        start = before.view(-1)[feature * groups + low] + low * self.size
        return (start + place - flat[base + low])[..., None]


class PermutedAddress(Part):
    """Row of an id = its place in a stored order.

    Attributes:
        address: (ids, feature) -> numbers ``[..., 1]`` of the ids of all features.
        places: packed integers: the place of each number.
    """

    address: nn.Module
    places: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        number = self.address(ids, feature)
        rows: Tensor = self.places(number, torch.zeros_like(number))
        return rows
