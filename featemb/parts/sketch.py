"""`SketchAddress`: rows of ids that a sketch of 4-slot buckets has found to be hot."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featemb.hashing import bucket, mix64, salts
from featemb.parts.base import Part
from featemb.rows import gather_rows

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

SLOTS = 4
COLD = -1
MEDIUM = -2
_NO_SIGN = (1 << 63) - 1


class SketchAddress(Part):
    """Private rows for the hot ids of a sketch, hashed rows of the feature's block for the others.

    An id has a key. Its bucket is ``hash(key, salt) mod S``, and its slot the one of the bucket's
    4 that holds the key, if any. The slot's pointer decides: a hot row (pointer >= 0) is the id's
    own; -1 or no slot is *cold*, the row ``offset[f] + hash(id, salt_f) mod size[f]``; -2 is
    *medium*, two rows of a block that all features share. Ids of ``whole`` features own the rows
    from ``offset[f]`` and are not in the sketch.

    With int32 keys the key is ``first_ids[f] + id``; with int64 keys, ``hash(id, salt of f)`` in
    63 bits, which two ids share with probability 2^-63.

    L = 1 without a medium block. With one L = 2, for a combine part that takes the mean: hot and
    cold ids then read their row twice.

    Attributes:
        offsets: first row of each feature's block.
        sizes: rows of each feature's block.
        whole: whether each feature's ids have private rows in its block.
        first_ids: first global id of each feature; not read with int64 keys.
        medium_offset: first row of the medium block.
        medium_size: rows of the medium block; 0 without one.
        seed: int64 scalar, seed of the salts.
        keys: int32 or int64 ``[S, 4]``; -1 is an empty slot.
        pointers: int32 ``[S, 4]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "seed": "seeds",
        "keys": "sketch",
        "pointers": "sketch",
    }
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[bool, ...]
    first_ids: tuple[int, ...]
    medium_offset: int
    medium_size: int
    seed: Tensor
    keys: Tensor
    pointers: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``, or ``[..., 2]`` with a medium block."""
        features = len(self.sizes)
        salt = salts(self.seed, 2 * features + 3)
        key = self._key(ids, feature, salt)
        rows = self._cold(ids, feature, salt)
        home = bucket(key, salt[2 * features], self.keys.shape[0])
        found = _rows_of(self.keys, home) == key.to(self.keys.dtype)[..., None]
        # one slot at most is found, so that the sum is its pointer
        pointer = (_rows_of(self.pointers, home) - COLD) * found
        pointer = pointer.sum(-1, dtype=torch.int32).long() + COLD
        rows = torch.where(pointer >= 0, pointer, rows)[..., None]
        if not self.medium_size:
            return rows
        shared = bucket(key[..., None], salt[2 * features + 1 :], self.medium_size)
        return torch.where((pointer == MEDIUM)[..., None], self.medium_offset + shared, rows)

    def key(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Keys int64 of ids ``[...]``: distinct for distinct (id, feature)."""
        return self._key(ids, feature, salts(self.seed, 2 * len(self.sizes) + 3))

    def home(self, key: Tensor) -> Tensor:
        """Buckets int64 of keys."""
        features = len(self.sizes)
        return bucket(key, salts(self.seed, 2 * features + 3)[2 * features], self.keys.shape[0])

    def frozen(self, codec: Codec) -> SketchAddress:
        """Return the address as it is served: keys of cold slots, which decide nothing, cleared."""
        fields = {name: getattr(self, name) for name in self.fields()}
        cold = self.pointers == COLD
        fields["keys"] = self.keys.masked_fill(cold, -1)
        fields["pointers"], fields["seed"] = self.pointers.clone(), self.seed.clone()
        fields["pointers"], fields["seed"] = self.pointers.clone(), self.seed.clone()
        return SketchAddress(**fields)

    def _key(self, ids: Tensor, feature: Tensor, salt: Tensor) -> Tensor:
        if self.keys.dtype == torch.int32:
            return ids + torch.tensor(self.first_ids, device=ids.device)[feature]
        return mix64(ids + salt[len(self.sizes) :][feature]) & _NO_SIGN

    def _cold(self, ids: Tensor, feature: Tensor, salt: Tensor) -> Tensor:
        constants = torch.tensor([self.offsets, self.sizes, self.whole], device=ids.device)
        offset, size, whole = constants[:, feature]
        rows: Tensor = offset + torch.where(whole.bool(), ids, bucket(ids, salt[feature], size))
        return rows


def _rows_of(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]`` for rows of any shape ``[...]``: ``[..., 4]``."""
    return gather_rows(table, rows.reshape(-1)).view(*rows.shape, table.shape[1])
