"""Address parts: (id, feature) -> rows of a shared table.

Every address takes int64 ids of any shape and the features they belong to, an int64 tensor that
broadcasts against the ids, and returns rows int64 of the ids' shape with one more axis: L lookups.
The per-feature constants are settings, not tensors: they follow from the schema and the sizes. The
seed is a tensor, since it decides answers: it travels in the state dict. Salts are computed from it
at every call, which is cheaper than storing one a (feature, lookup).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from featemb.hashing import bucket, salts
from featemb.parts.base import Part


class OffsetAddress(Part):
    """One private row an id: ``row = offset[feature] + id``; L = 1.

    Attributes:
        offsets: first row of each feature.
    """

    offsets: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        offset = torch.tensor(self.offsets, device=ids.device)
        return (ids + offset[feature])[..., None]


class HashAddress(Part):
    """Rows of a block of each feature's own: private where ``whole``, else hashed; L = 1.

    ``row = offset[f] + id`` for whole features, else ``offset[f] + hash(id, salt_f) mod size[f]``.

    Attributes:
        offsets: first row of each feature's block.
        sizes: rows of each feature's block.
        whole: whether each feature's ids have private rows.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[bool, ...]
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        constants = torch.tensor([self.offsets, self.sizes, self.whole], device=ids.device)
        offset, size, whole = constants[:, feature]
        salt = salts(self.seed, len(self.sizes))[feature]
        inside = torch.where(whole.bool(), ids, bucket(ids, salt, size))
        rows: Tensor = offset + inside
        return rows[..., None]


class SharedHashAddress(Part):
    """Feature multiplexing: every feature hashes into one shared block, L times.

    ``row_l = hash(id, salt_{f,l}) mod size`` with an independent salt for each (feature, lookup).
    Features with ``first_private[f] >= 0`` are collisionless: id i owns the L rows from
    ``first_private[f] + i * L``, which lie behind the shared block.

    Attributes:
        size: rows of the shared block.
        lookups: L.
        first_private: first private row of each feature, or -1 for the shared block.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    size: int
    lookups: int
    first_private: tuple[int, ...]
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., L]``."""
        features, lookups = len(self.first_private), self.lookups
        salt = salts(self.seed, features * lookups).view(features, lookups)
        shared = bucket(ids[..., None], salt[feature], self.size)
        if all(first < 0 for first in self.first_private):
            return shared
        first = torch.tensor(self.first_private, device=ids.device)[feature][..., None]
        private = first + ids[..., None] * lookups + torch.arange(lookups, device=ids.device)
        return torch.where(first >= 0, private, shared)
