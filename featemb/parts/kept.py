"""Which of many positions are kept, and the sparse rows that are made of it.

A position is a number ``0 <= p < total``: of an id (`KeptRows`), or of a weight (`KeptWeights`). An
index maps a kept position to its rank among the kept ones, and any other to -1. Its bytes depend on
how many positions are kept and not on which: the size of a pruned layer is known before it is
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.memory import module_bytes
from featemb.parts.base import Part
from featemb.parts.hot import count_bits, single_bits

_WORD = 64
_INT32 = 2**31 - 1


class EveryPosition(Part):
    """All positions are kept: no bytes."""

    def forward(self, positions: Tensor) -> Tensor:
        """Return the ranks: the positions themselves."""
        return positions


class BitIndex(Part):
    """A bit a position, and the number of set bits before every 64th: 12 bytes a 64 positions.

    Attributes:
        words: int64, the bits.
        ranks: int32 (int64 beyond 2^31 kept positions), kept positions before each word.
    """

    memory_parts: ClassVar[dict[str, str]] = {"words": "remap", "ranks": "remap"}
    words: Tensor
    ranks: Tensor

    @classmethod
    def of(cls, kept: Tensor, total: int) -> BitIndex:
        """Return the index of ascending positions int64 ``[m]``."""
        shape, device = -(-total // _WORD), kept.device
        words = torch.zeros(shape, dtype=torch.int64, device=device)
        counts = torch.zeros(shape, dtype=torch.int64, device=device)
        if not kept.is_meta:
            bits = torch.tensor(single_bits(), device=device)[kept % _WORD]
            words.index_add_(0, kept // _WORD, bits)  # distinct bits: or is plus
            counts.index_add_(0, kept // _WORD, torch.ones_like(kept))
        dtype = torch.int32 if kept.numel() <= _INT32 else torch.int64
        # a plan has no values, and a running sum of a billion of them cannot even be planned
        ranks = counts if counts.is_meta else counts.cumsum(0) - counts
        return cls(words=words, ranks=ranks.to(dtype))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the rank of each position int64 ``[...]``, or -1."""
        place = positions >> 6
        bit = torch.tensor(single_bits(), device=positions.device)[positions & (_WORD - 1)]
        word = self.words[place]
        below = word & ~(bit | -bit)
        return torch.where((word & bit) != 0, self.ranks[place].long() + count_bits(below), -1)


class ListIndex(Part):
    """Kept positions by blocks, as the columns of CSR: 1 or 2 bytes each, and 4 bytes a block.

    Within a block of ``block`` positions the kept ones are listed in order, as offsets from its
    beginning (less 2^15 where they need 16 bits: signed numbers are the ones that every runtime
    has). A lookup is a binary search of its block.

    Attributes:
        starts: int32 (int64 beyond 2^31), kept positions before each block, and of all.
        places: uint8 or int16, the offsets.
        block: positions a block: at most 2^8 (uint8) or 2^16 (int16).
    """

    computes: ClassVar[bool] = True
    memory_parts: ClassVar[dict[str, str]] = {"starts": "remap", "places": "remap"}
    starts: Tensor
    places: Tensor
    block: int

    @classmethod
    def of(cls, kept: Tensor, total: int, block: int) -> ListIndex:
        """Return the index of ascending positions int64 ``[m]``."""
        blocks, device = -(-total // block), kept.device
        counts = torch.zeros(blocks + 1, dtype=torch.int64, device=device)
        if not kept.is_meta:
            counts.index_add_(0, kept // block + 1, torch.ones_like(kept))
        dtype = torch.int32 if kept.numel() <= _INT32 else torch.int64
        wide = block > 2**8
        places = (kept % block - 2**15).short() if wide else (kept % block).to(torch.uint8)
        starts = counts if counts.is_meta else counts.cumsum(0)
        return cls(starts=starts.to(dtype), places=places, block=block)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the rank of each position int64 ``[...]``, or -1."""
        rank, found = self._search(positions)
        return torch.where(found, rank, -1)

    def span(self, first: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the kept positions of ``[first, first + width)``: two searches for all of them.

        Returns:
            Ranks ``[..., width]``, first those of the kept positions, and how far each is from the
            first position: ``width`` for the ranks that are left over.
        """
        low, _ = self._search(first)
        high, found = self._search(first + (width - 1))
        rank = low[..., None] + torch.arange(width, device=first.device)
        kept = rank < (high + found)[..., None]
        block = first // self.block
        from_block = (block * self.block - first)[..., None]
        last = self.starts.shape[0] - 1
        for ahead in range(1, (width - 1) // self.block + 2):
            begin = self.starts[(block + ahead).clamp(max=last)]
            from_block = from_block + (rank >= begin[..., None]) * self.block
        rank = rank.clamp(max=self.places.shape[0] - 1)
        return rank, torch.where(kept, from_block + self._place(rank), width)

    def _search(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many kept positions are smaller, and whether each is kept itself."""
        block = positions // self.block
        wanted = positions % self.block
        low, end = self.starts[block].long(), self.starts[block + 1].long()
        high = end
        most = self.places.shape[0] - 1
        for _ in range(self.block.bit_length()):
            middle = ((low + high) >> 1).clamp(max=most)
            right = (low < high) & (self._place(middle) < wanted)
            low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
        return low, (low < end) & (self._place(low.clamp(max=most)) == wanted)

    def _place(self, rank: Tensor) -> Tensor:
        place = self.places[rank].long()
        return place + 2**15 if self.block > 2**8 else place


def smallest_index(kept: Tensor, total: int) -> Part:
    """Return the index of ascending positions int64 ``[m]`` of ``[0, total)`` with fewest bytes.

    Raises:
        ConfigError: nothing is kept.
    """
    if not kept.numel():
        raise ConfigError("an index needs at least one position to keep")
    if kept.numel() == total:
        return EveryPosition()
    forms: list[Callable[[Tensor], Part]] = [
        lambda kept: BitIndex.of(kept, total),
        lambda kept: ListIndex.of(kept, total, 2**8),
        lambda kept: ListIndex.of(kept, total, 2**16),
    ]
    plan = torch.empty_like(kept, device="meta")
    return min(forms, key=lambda form: sum(module_bytes(form(plan)).values()))(kept)


def index_bytes(kept: int, total: int) -> int:
    """Return the bytes of `smallest_index`, for searches over many sizes."""
    if kept == total:
        return 0
    number = 4 if kept <= _INT32 else 8
    bits = -(-total // _WORD) * (8 + number)
    lists = [(-(-total // 2**8) + 1) * number + kept, (-(-total // 2**16) + 1) * number + 2 * kept]
    return min(bits, *lists)


class KeptRows(Part):
    """Some rows of a table, the others are zero.

    Attributes:
        index: position -> rank or -1.
        rows: rows ``[...]`` -> vectors ``[..., C]``, the kept ones.
    """

    index: nn.Module
    rows: nn.Module

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]`` of row numbers of the whole table."""
        rank = self.index(rows)
        vectors: Tensor = self.rows(rank.clamp(min=0))
        return torch.where((rank >= 0)[..., None], vectors, torch.zeros_like(vectors))


class KeptWeights(Part):
    """Some numbers of a table, the others are zero: CSR or a bitmask, by its index.

    Attributes:
        index: position ``row width + column`` -> rank or -1.
        values: rows ``[...]`` -> ``[..., 1]``, the kept numbers.
        width: C.
    """

    computes: ClassVar[bool] = True
    index: nn.Module
    values: nn.Module
    width: int

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]`` of row numbers of the whole table."""
        first = rows * self.width
        if isinstance(self.index, ListIndex):
            rank, column = self.index.span(first, self.width)
            values: Tensor = self.values(rank)[..., 0]
            wide = values.new_zeros(*rows.shape, self.width + 1)  # the last column is no one's
            return wide.scatter(-1, column, values)[..., : self.width]
        rank = self.index(first[..., None] + torch.arange(self.width, device=first.device))
        values = self.values(rank.clamp(min=0))[..., 0]
        return torch.where(rank >= 0, values, torch.zeros_like(values))
