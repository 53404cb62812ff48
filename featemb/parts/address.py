"""Address parts: (id, feature) -> rows of a shared table.

Every address takes int64 ids of any shape and the features they belong to, an int64 tensor that
broadcasts against the ids, and returns rows int64 of the ids' shape with one more axis: L lookups.
The per-feature constants are settings, not tensors: they follow from the schema and the sizes. The
seed is a tensor, since it decides answers: it travels in the state dict. Salts are computed from it
at every call, which is cheaper than storing one a (feature, lookup).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
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

    @classmethod
    def of(cls, cardinalities: Sequence[int]) -> OffsetAddress:
        """Return the address of features side by side."""
        return cls(offsets=(0, *accumulate(cardinalities))[:-1])

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        offset = torch.tensor(self.offsets, device=ids.device)
        return (ids + offset[feature])[..., None]


class HashAddress(Part):
    """L hashed rows of a block for each feature; private rows where ``whole``.

    ``row_l = offset[f] + hash(id, salt_{f,l}) mod size[f]`` with an independent salt for each
    (feature, lookup). Blocks may lie on each other: features with one block share its rows, which
    is feature multiplexing. A whole feature's id reads row ``offset[f] + id`` L times or, with
    ``spread``, owns the L rows from ``offset[f] + id * L``.

    Attributes:
        offsets: first row of each feature's block.
        sizes: rows of each feature's block; 0 where nothing is ever read.
        whole: whether each feature's ids have private rows.
        lookups: L.
        spread: whether an id of a whole feature owns L rows rather than one.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[bool, ...]
    lookups: int
    spread: bool
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., L]``."""
        features, lookups = len(self.sizes), self.lookups
        constants = torch.tensor([self.offsets, self.sizes, self.whole], device=ids.device)
        offset, size, whole = constants[:, feature][..., None]
        salt = salts(self.seed, features * lookups).view(features, lookups)[feature]
        ids = ids[..., None]
        inside = bucket(ids, salt, size.clamp(min=1))
        if any(self.whole):
            own = ids * lookups + torch.arange(lookups, device=ids.device) if self.spread else ids
            inside = torch.where(whole.bool(), own, inside)
        rows: Tensor = offset + inside
        return rows


class SharedHashAddress(Part):
    """Feature multiplexing: every feature hashes into one shared block, L_f times.

    ``row_l = start[t] + hash(id, salt_{f,l}) mod size[t]`` with an independent salt for each
    (feature, lookup); the lookups of all features take the sub-tables t in turns. Features with
    ``first_private[f] >= 0`` are collisionless: id i owns the L_f rows from
    ``first_private[f] + i * L_f``, which lie behind the shared block. Where a feature has fewer
    lookups than the largest, the row of its first one is repeated; its vector is cut.

    Attributes:
        sizes: rows of each sub-table of the shared block.
        lookups: L_f of each feature.
        first_private: first private row of each feature, or -1 for the shared block.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    sizes: tuple[int, ...]
    lookups: tuple[int, ...]
    first_private: tuple[int, ...]
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., max L_f]``."""
        most, device = max(self.lookups), ids.device
        number = torch.arange(most, device=device)
        if min(self.lookups) < most:
            count = torch.tensor(self.lookups, device=device)[feature][..., None]
            number = torch.where(number < count, number, 0)
        salt = salts(self.seed, len(self.lookups) * most)[feature[..., None] * most + number]
        ids = ids[..., None]
        rows = self._shared(ids, salt, feature, number)
        if all(first < 0 for first in self.first_private):
            return rows
        first = torch.tensor(self.first_private, device=device)[feature][..., None]
        count = torch.tensor(self.lookups, device=device)[feature][..., None]
        return torch.where(first >= 0, first + ids * count + number, rows)

    def _shared(self, ids: Tensor, salt: Tensor, feature: Tensor, number: Tensor) -> Tensor:
        if len(self.sizes) == 1:
            return bucket(ids, salt, self.sizes[0])
        before = torch.tensor((0, *accumulate(self.lookups)), device=ids.device)
        table = (before[feature][..., None] + number) % len(self.sizes)
        sizes = torch.tensor(self.sizes, device=ids.device)
        starts = torch.tensor((0, *accumulate(self.sizes)), device=ids.device)
        rows: Tensor = starts[table] + bucket(ids, salt, sizes[table])
        return rows


class DigitAddress(Part):
    """The digits of an id in a mixed radix: quotients and remainders, one row each.

    ``row_j = offset[j][f] + (id // stride[j][f]) mod radix[j][f]``, in integers of 64 bits.

    Attributes:
        offsets: ``[L][F]``, first row of each digit's block.
        strides: ``[L][F]``.
        radices: ``[L][F]``.
    """

    offsets: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    radices: tuple[tuple[int, ...], ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., L]``."""
        constants = torch.tensor([self.offsets, self.strides, self.radices], device=ids.device)
        offset, stride, radix = constants.transpose(1, 2)[:, feature]
        rows: Tensor = offset + ids[..., None] // stride % radix
        return rows


class DigitHashAddress(Part):
    """The digits of an id, each hashed into one block that all features share.

    ``row_j = hash((id // stride[j][f]) mod radix[j][f], salt_{f,j}) mod size``.

    Attributes:
        size: rows of the shared block.
        strides: ``[L][F]``.
        radices: ``[L][F]``.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    size: int
    strides: tuple[tuple[int, ...], ...]
    radices: tuple[tuple[int, ...], ...]
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., L]``."""
        digits, features = len(self.strides), len(self.strides[0])
        constants = torch.tensor([self.strides, self.radices], device=ids.device)
        stride, radix = constants.transpose(1, 2)[:, feature]
        salt = salts(self.seed, features * digits).view(features, digits)[feature]
        return bucket(ids[..., None] // stride % radix, salt, self.size)


class FeatureAddress(Part):
    """One row a feature, whatever the id: what unknown ids share."""

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        return feature.expand_as(ids)[..., None]
