"""`PackedInts`: unsigned integers of a few bits each, side by side in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from featemb.ids import tracing
from featemb.parts.base import Part

_WORD = 32
_MASK = (1 << _WORD) - 1
_MOST_BITS = 31

P = TypeVar("P", bound="PackedInts")


class PackedInts(Part):
    """Groups of unsigned integers, of ``bits[g]`` bits each, packed without gaps.

    Integer i of group g takes the bits ``i bits[g] ... (i + 1) bits[g] - 1`` of the group's words,
    the lowest bit of a word first; it may lie in two words. A group begins at a word of its own,
    so n integers take ``4 ceil(n bits / 32)`` bytes. Integers of 0 bits are 0 and take none.

    Attributes:
        words: int32, the words of all groups.
        starts: first word of each group.
        bits: bits of an integer of each group, 0 to 31.
    """

    memory_parts: ClassVar[dict[str, str]] = {"words": "pointers"}
    words: Tensor
    starts: tuple[int, ...]
    bits: tuple[int, ...]

    @classmethod
    def empty(
        cls: type[P], counts: Sequence[int], bits: Sequence[int], device: torch.device | str
    ) -> P:
        """Return groups of ``counts[g]`` integers of ``bits[g]`` bits, all 0."""
        if not all(0 <= one <= _MOST_BITS for one in bits):
            raise ValueError(f"bits must be 0 to {_MOST_BITS}, got {tuple(bits)}")
        lengths = [-(-n * one // _WORD) for n, one in zip(counts, bits, strict=True)]
        ends = (0, *accumulate(lengths))
        words = torch.zeros(ends[-1], dtype=torch.int32, device=device)
        return cls(words=words, starts=ends[:-1], bits=tuple(bits))

    def forward(self, index: Tensor, group: Tensor) -> Tensor:
        """Return integers int64 for indices int64 ``[...]`` within groups that broadcast."""
        if not self.words.shape[0]:
            return torch.zeros_like(index + group)
        constants = torch.tensor([self.starts, self.bits], device=index.device)
        # a scalar as an index would be read from the device, which breaks the graph
        start, bits = constants.index_select(1, group.reshape(-1)).view(2, *group.shape)
        first = index * bits
        word, last = start + (first >> 5), self.words.shape[0] - 1
        # an integer that ends with its word reads a further word for nothing: clamped at the end
        low = self._word(word.clamp(max=last)) & _MASK
        high = self._word((word + 1).clamp(max=last)) << _WORD
        mask = torch.bitwise_left_shift(torch.ones_like(bits), bits) - 1
        # the operator `>>` by a tensor has no form in ONNX, the function has
        shifted = torch.bitwise_right_shift(low | high, first & (_WORD - 1))
        return shifted & mask

    @torch.no_grad()
    def write(self, values: Tensor, group: int, first: int = 0) -> None:
        """Overwrite integers of a group from number ``first``, a multiple of 32.

        Args:
            values: int64 ``[n]``, each below ``2^bits``. Integers that follow in the last word that
                is written become 0: a group is written in order.
            group: g.
            first: number of the first one.

        Raises:
            ValueError: ``first`` is no multiple of 32.
        """
        bits = self.bits[group]
        if first % _WORD:
            raise ValueError(f"integers are written from a multiple of {_WORD}, not from {first}")
        if not bits or not len(values):
            return
        start = torch.arange(len(values), device=values.device) * bits
        word, shift = start >> 5, start & (_WORD - 1)
        shifted = values << shift
        packed = torch.zeros(-(-len(values) * bits // _WORD) + 1, dtype=torch.int64)
        packed = packed.to(values.device)
        packed.index_add_(0, word, shifted & _MASK)  # no two integers share a bit: or is plus
        packed.index_add_(0, word + 1, shifted >> _WORD)
        signed = torch.where(packed >> (_WORD - 1) > 0, packed - (1 << _WORD), packed)[:-1]
        begin = self.starts[group] + first * bits // _WORD
        self.words[begin : begin + len(signed)] = signed.to(self.words)

    def _word(self, place: Tensor) -> Tensor:
        if tracing():
            return self.words[place].long()
        return self.words.index_select(0, place.reshape(-1)).view(place.shape).long()


class PackedCodes(PackedInts):
    """`PackedInts` that are codes of rows: several for each id."""

    computes: ClassVar[bool] = True
    memory_parts: ClassVar[dict[str, str]] = {"words": "codes"}
