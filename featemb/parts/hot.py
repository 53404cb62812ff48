"""Which ids have private rows: the most frequent ones, numbered over all features."""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from featemb.frequency import hot_ids, hot_sizes, hot_start
from featemb.parts.base import Part
from featemb.schema import Schema

_WORD = 64


class HotRange(Part):
    """Private ids that follow each other in every feature; it holds no bytes.

    Attributes:
        first: first private id of each feature.
        size: number of private ids of each feature.
    """

    first: tuple[int, ...]
    size: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return the private row of each id, or -1."""
        before = (0, *accumulate(self.size))[:-1]
        first, size, start = torch.tensor([self.first, self.size, before], device=ids.device)[
            :, feature
        ]
        inside = ids - first
        return torch.where((inside >= 0) & (inside < size), start + inside, -1)


class HotBitmap(Part):
    """Private ids anywhere: a bit an id, and the number of set bits before every 64th: 1.5 bits.

    Attributes:
        words: int64, a bit an id; a feature begins at a word of its own.
        ranks: int32, private ids before each word, over all features.
        starts: first word of each feature.
    """

    memory_parts: ClassVar[dict[str, str]] = {"words": "remap", "ranks": "remap"}
    words: Tensor
    ranks: Tensor
    starts: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return the private row of each id, or -1."""
        start = torch.tensor(self.starts, device=ids.device)[feature]
        place = start + (ids >> 6)
        # ONNX knows no shift by a tensor
        bit = torch.tensor(single_bits(), device=ids.device)[ids & (_WORD - 1)]
        word = self.words[place]
        below = word & ~(bit | -bit)
        rank = self.ranks[place].long() + count_bits(below)
        return torch.where((word & bit) != 0, rank, -1)


def single_bits() -> list[int]:
    """Return the 64 powers of two as int64 numbers; the last one is negative."""
    return [1 << bit for bit in range(_WORD - 1)] + [-(1 << (_WORD - 1))]


def count_bits(x: Tensor) -> Tensor:
    """Number of set bits of each int64 number, 0 to 64."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    # adding up the bytes by shifts: a multiplication would overflow
    x = x + (x >> 8)
    x = x + (x >> 16)
    return (x + (x >> 32)) & 0x7F


def hot_rank(schema: Schema, total: int, device: torch.device) -> HotRange | HotBitmap:
    """Return the part that numbers the ``total`` most frequent ids of all features, others are -1.

    Where the ids of each feature are numbered by frequency (as the project's data sets are) it
    needs no bytes; otherwise 1.5 bits an id.
    """
    return hot_part(schema, hot_sizes(schema, total), device)


def hot_part(schema: Schema, sizes: tuple[int, ...], device: torch.device) -> HotRange | HotBitmap:
    """Return the part that numbers so many of the most frequent ids of each feature."""
    starts = [hot_start(f, size) for f, size in zip(schema.features, sizes, strict=True)]
    first = tuple(start for start in starts if start is not None)
    if len(first) == len(starts):
        return HotRange(first=first, size=sizes)
    lengths = [-(-(feature.cardinality or 1) // _WORD) for feature in schema.features]
    begins = (0, *accumulate(lengths))
    if device.type == "meta":
        words = torch.empty(begins[-1], dtype=torch.int64, device=device)
        return HotBitmap(words=words, ranks=words.int(), starts=begins[:-1])
    bits = np.zeros(begins[-1] * _WORD, np.uint8)
    for feature, size, begin in zip(schema.features, sizes, begins[:-1], strict=True):
        bits[begin * _WORD + hot_ids(feature, size)] = 1
    packed = np.packbits(bits, bitorder="little").view("<i8").astype(np.int64)
    per_word = bits.reshape(-1, _WORD).sum(1, dtype=np.int64)
    return HotBitmap(
        words=torch.from_numpy(packed).to(device),
        ranks=torch.from_numpy((per_word.cumsum() - per_word).astype(np.int32)).to(device),
        starts=begins[:-1],
    )


class HotAddress(Part):
    """Private rows for frequent ids, another address for the rest.

    Private id number p reads row p, the same one L times; with ``spread`` it owns L rows from
    ``p L``. The rest's rows begin behind the private ones.

    Attributes:
        hot: part that gives an id's private number, or -1.
        cold: address of the rest, rows ``[..., L]``.
        num_hot: number of private rows.
        lookups: L.
        spread: whether a private id owns L rows rather than one.
    """

    hot: nn.Module
    cold: nn.Module
    num_hot: int
    lookups: int
    spread: bool

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., L]``."""
        number = self.hot(ids, feature)[..., None]
        private = number
        if self.spread:
            private = number * self.lookups + torch.arange(self.lookups, device=ids.device)
        return torch.where(number >= 0, private, self.num_hot + self.cold(ids, feature))
