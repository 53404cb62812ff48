"""Rows in blocks that ids share by a stored map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featemb.parts.base import Part


class BlockAddress(Part):
    """Blocks of consecutive ids read a stored block: ``row = p(b) block + id mod block``; L = 1.

    Block ``b = first[f] + id // block``; p are stored pointers. Several blocks of any feature may
    point to one.

    Attributes:
        first: first block of each feature.
        block: ids a block.
        pointers: part (index, group) -> number of the stored block; one group.
    """

    first: tuple[int, ...]
    block: int
    pointers: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        first = torch.tensor(self.first, device=ids.device)[feature]
        group = torch.zeros((), dtype=torch.int64, device=ids.device)
        stored = self.pointers(first + ids // self.block, group)
        rows: Tensor = (stored * self.block + ids % self.block)[..., None]
        return rows
