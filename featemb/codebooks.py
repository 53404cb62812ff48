"""Sizes of codes and codebooks: their bytes, and the largest ones within a limit.

Shape letters: n ids of a feature, D width of the vectors, M parts of a vector, K codewords a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

from featemb.memory import module_bytes
from featemb.parts.hot import hot_part
from featemb.schema import Schema

MOST_CODEWORDS = 256
_WORD = 32
_META = torch.device("meta")


@dataclass(frozen=True)
class Codebooks:
    """Sizes of the features' codebooks.

    Attributes:
        parts: M.
        sizes: K of each feature; 0 where it keeps its rows.
        tails: codewords that an id that is not frequent may have; K where there is no such rule.
        hot: number of frequent ids of each feature; 0 where the rule does not matter.
        offsets: first codeword of each feature.
        codewords: number of all codewords, of D / M numbers each.
    """

    parts: int
    sizes: tuple[int, ...]
    tails: tuple[int, ...]
    hot: tuple[int, ...]
    offsets: tuple[int, ...]
    codewords: int

    @property
    def low_bits(self) -> tuple[int, ...]:
        """Bits of a code that every id of each feature has."""
        return tuple(bits_below(tail) for tail in self.tails)

    @property
    def high_bits(self) -> tuple[int, ...]:
        """Further bits of the codes of frequent ids."""
        both = zip(self.sizes, self.low_bits, strict=True)
        return tuple(bits_below(size) - low for size, low in both)


@dataclass(frozen=True)
class Coder:
    """Features whose vectors are cut into parts, with a codeword for each.

    A feature keeps its rows where codes and codewords of its own take no fewer bytes.

    Attributes:
        schema: the features.
        dim: D.
        by_feature: whether each feature has codebooks of its own, or all the same.
        shared: whether the parts of a vector have the same codewords.
        top: share of each feature's ids that are frequent; None for all.
    """

    schema: Schema
    dim: int
    by_feature: bool = True
    shared: bool = False
    top: float | None = None

    def of(self, parts: int, codewords: int, tail: int | None = None) -> Codebooks:
        """Return the sizes for at most so many parts and codewords, of the tail if it is told."""
        parts = max(m for m in range(1, min(parts, self.dim) + 1) if self.dim % m == 0)
        books = 1 if self.shared else parts
        sizes, tails, hot = [], [], []
        for n in self.schema.cardinalities:
            size, few, frequent = self._granules(n, codewords, tail)
            own = self._coded(n, frequent, parts, size, few) < 4 * n * self.dim
            sizes.append(size if own else 0)
            tails.append(few if own else 0)
            hot.append(frequent if own else 0)
        ends = (0, *accumulate(size * books for size in sizes))
        offsets, total = ends[:-1], ends[-1]
        if not self.by_feature:
            offsets, total = (0,) * len(sizes), max(sizes) * books
        made = Codebooks(parts, tuple(sizes), tuple(tails), tuple(hot), offsets, total)
        if self.by_feature or self.bytes(made) < self.schema.full_bytes(self.dim):
            return made
        none = (0,) * len(sizes)
        return Codebooks(parts, none, none, none, none, 0)

    def _granules(self, n: int, codewords: int, tail: int | None) -> tuple[int, int, int]:
        """Return K and the tail of a feature, and the number of its frequent ids."""
        size = min(codewords, n if self.by_feature else sum(self.schema.cardinalities))
        few = size if tail is None else min(tail, size)
        frequent = math.ceil((self.top or 0) * n)
        if few == size or frequent == n:
            return size, size, 0
        return (size, few, frequent) if frequent else (few, few, 0)

    def _coded(self, n: int, frequent: int, parts: int, size: int, tail: int) -> int:
        """Return the bytes of a feature's codes, and of its own codewords."""
        low = bits_below(tail)
        high = bits_below(size) - low
        codes = _packed(n * parts * low) + _packed(frequent * parts * high)
        return codes + (self._book(size, parts) if self.by_feature else 0)

    def _book(self, size: int, parts: int) -> int:
        return 4 * size * self.dim // (parts if self.shared else 1)

    def bytes(self, books: Codebooks) -> int:
        """Return the serving bytes of all features."""
        total = 4 * books.codewords * (self.dim // books.parts)
        for f, n in enumerate(self.schema.cardinalities):
            low, high = books.low_bits[f], books.high_bits[f]
            total += _packed(n * books.parts * low) if books.sizes[f] else 4 * n * self.dim
            total += _packed(books.hot[f] * books.parts * high)
        if any(books.high_bits):
            total += sum(module_bytes(hot_part(self.schema, books.hot, _META)).values())
        return total

    def _bits(self, books: Codebooks) -> float:
        """Return the mean bits of a vector of the largest feature that has codes."""
        few = math.log2(max(books.tails) or 1)
        more = (self.top or 0) * (math.log2(max(books.sizes) or 1) - few)
        return books.parts * (few + more)

    def largest(self, limit: int, made: Callable[[int, int], Codebooks]) -> Codebooks:
        """Return the sizes of most bits a vector within a limit of bytes.

        An id counts ``M log2 K``, of the codewords that it may have; codes have at most 8 bits. Of
        equal ones that of the fewest parts is taken.

        Args:
            limit: serving bytes; the smallest sizes, ``made(1, 2)``, must be within.
            made: (parts, codewords) -> sizes; it may override either.
        """
        best, most = made(1, 2), 0.0
        for parts in range(1, self.dim + 1):
            if self.dim % parts:
                continue
            low, high = 1, MOST_CODEWORDS + 1
            while high - low > 1:
                middle = (low + high) // 2
                fits = self.bytes(made(parts, middle)) <= limit
                low, high = (middle, high) if fits else (low, middle)
            found = made(parts, low)
            bits = self._bits(found)
            # codewords that are set by hand may be too many for these parts
            if bits > most and self.bytes(found) <= limit:
                best, most = found, bits
        return best


def bits_below(count: int) -> int:
    """Return the bits of an integer below a number, 0 of none."""
    return max(0, count - 1).bit_length()


def _packed(bits: int) -> int:
    return 4 * -(-bits // _WORD)
