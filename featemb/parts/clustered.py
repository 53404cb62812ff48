"""Rows by stored pointers and hashes: sums of two rows, chunk by chunk."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.hashing import bucket, mix64, salts
from featemb.parts.base import Part


class ClusteredAddress(Part):
    """Two rows for each of c chunks: one that a pointer names, and one by a hash.

    Row ``offset[f] + (t second[f] + r) c + i`` holds number r of table t for chunk i, where
    ``r = pointer(x c + i)`` in table 0 and ``r = hash(x, salt_{f,i}) mod size[f]`` in table 1. The
    salts of table 1 are mixed with a counter, so that the hash can be drawn anew. A hashed feature
    has no pointers: both of its rows are hashes into one table (``second[f] = 0``) that are never
    drawn anew.

    Attributes:
        offsets: first row of each feature.
        sizes: rows of each table of a feature, by chunk.
        second: rows before table 1, by chunk: the feature's size, or 0 if it is hashed.
        chunks: c.
        pointers: part (index, feature) -> integers below the feature's size.
        seed: int64 scalar, seed of the salts.
        round: int64 scalar, how often the hashes have been drawn anew.
    """

    computes: ClassVar[bool] = True
    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds", "round": "seeds"}
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    second: tuple[int, ...]
    chunks: int
    pointers: nn.Module
    seed: Tensor
    round: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 2 c]``, those of table 0 first."""
        constants = torch.tensor([self.offsets, self.second], device=ids.device)
        offset, second = constants[:, feature][..., None]
        chunk = torch.arange(self.chunks, device=ids.device)
        left = self.hashed(ids, feature, 0) if not all(self.second) else None
        if any(self.second):
            index = ids[..., None] * self.chunks + chunk
            pointed = self.pointers(torch.where(second > 0, index, 0), feature[..., None])
            left = pointed if left is None else torch.where(second > 0, pointed, left)
        assert left is not None
        both = torch.stack([left, second + self.hashed(ids, feature, 1)], -2)
        rows: Tensor = (offset[..., None] + both * self.chunks + chunk).flatten(-2)
        return rows

    def hashed(self, ids: Tensor, feature: Tensor, table: int, ahead: int = 0) -> Tensor:
        """Return the hashes ``[..., c]`` of ids within a table, after ``ahead`` more draws."""
        features = len(self.sizes)
        salt = salts(self.seed, 2 * features * self.chunks).view(features, 2, -1)[feature, table]
        constants = torch.tensor([self.sizes, self.second], device=ids.device)
        size, second = constants[:, feature][..., None]
        if table == 1 and any(self.second):
            salt = torch.where(second > 0, mix64(salt + self.round + ahead), salt)
        return bucket(ids[..., None], salt, size)


class PairSum(Part):
    """Add the first half of the vectors to the second, and concatenate.

    ``[..., 2 c, C] -> [..., c C]``.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[..., c C]``."""
        first, second = vectors.chunk(2, -2)
        return (first + second).flatten(-2)
