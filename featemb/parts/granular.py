"""Stored codes in further forms: codewords that all parts share, more bits for frequent ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featemb.parts.base import Part
from featemb.parts.coded import CodedAddress


class SharedCodedAddress(CodedAddress):
    """A `CodedAddress` whose parts have the same codewords: row ``offset[f] + code(x M + m)``."""

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., M]``."""
        size = torch.tensor(self.sizes, device=ids.device)[feature][..., None]
        rows: Tensor = super().forward(ids, feature)
        return rows - size * torch.arange(self.parts, device=ids.device)


class HotCodes(Part):
    """Codes of M parts an id, of which those of frequent ids have further bits.

    ``code = low(index) + scale[f] high(number M + part)``, with the id's number among the frequent
    ones of its feature; ``high`` is 0 for all others.

    Attributes:
        hot: part that numbers the frequent ids over all features, others are -1.
        codes: part (index, group) -> integer; group f are the low bits of feature f, of all ids,
            group F + f its high bits, of the frequent ones.
        parts: M.
        before: number of frequent ids of the features before each.
        scales: 2 to the number of low bits, of each feature.
    """

    hot: nn.Module
    codes: nn.Module
    parts: int
    before: tuple[int, ...]
    scales: tuple[int, ...]

    def forward(self, index: Tensor, feature: Tensor) -> Tensor:
        """Return codes int64 for indices ``x M + part`` of features that broadcast."""
        number = self.hot(index // self.parts, feature)
        before, scale = torch.tensor([self.before, self.scales], device=index.device)[:, feature]
        frequent = number >= 0
        own = torch.where(frequent, (number - before) * self.parts + index % self.parts, 0)
        high = self.codes(own, feature + len(self.scales))
        codes: Tensor = self.codes(index, feature) + torch.where(frequent, scale * high, 0)
        return codes
