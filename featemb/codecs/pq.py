"""pq: product-quantised rows, a code for each part of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.codecs.floats import FloatRows
from featemb.codecs.weighted import CountingCodec, largest_errors
from featemb.config import register
from featemb.lloyd import k_means, nearest, thinned
from featemb.parts.base import Part
from featemb.parts.packed import PackedCodes

_SEED = 0x9E3779B9
_SAMPLE = 1 << 17
_PER_CODEWORD = 64
_BLOCK_ROWS = 1 << 18
_SAFE_EXPONENT = 40
MOST_BITS = 16


class ProductRows(Part):
    """Rows of which each part is a codeword; ``[...]`` rows give fp32 ``[..., C]``.

    Attributes:
        codes: part (index, group) -> code; row r has those from ``r M`` on, of its M parts.
        codebook: fp32 ``[K, C]``: in a part's columns, its codewords.
        widths: numbers of each part, C together.
    """

    memory_parts: ClassVar[dict[str, str]] = {"codebook": "codebooks"}
    codes: nn.Module
    codebook: Tensor
    widths: tuple[int, ...]

    def forward(self, rows: Tensor) -> Tensor:
        """Gather codewords."""
        owner = torch.tensor(
            [part for part, width in enumerate(self.widths) for _ in range(width)],
            device=rows.device,
        )
        codes = read_codes(self.codes, rows.reshape(-1), len(self.widths))
        return self.codebook.gather(0, codes[:, owner]).view(*rows.shape, len(owner))


@register
@dataclass(frozen=True, kw_only=True)
class PQ(CountingCodec):
    """Product quantisation: each part of a row is the nearest of its ``2^bits`` codewords.

    Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 33(1), 2011.
    Codewords are found by k-means (`featemb.lloyd`) over the rows of the table, each weighed by how
    often it is read; of large tables over a sample, which holds the rows that are read most. A
    function of the table and these counts alone.

    A row of C numbers is cut into ``min(parts, C)`` parts as equal as can be, the first ones wider
    by one number. A table of R rows has ``K = min(2^bits, R)`` codewords a part, and codes of
    ``ceil(log2 K)`` bits. Where these would take no fewer bytes than fp32 rows, as in small tables,
    the rows are stored as fp32; the shape alone decides.

    Bytes: ``R parts bits / 8 + 4 K C``, or ``4 R C``.

    Attributes:
        parts: codes a row.
        bits: bits a code, 1 to 16.
    """

    name: ClassVar[str] = "pq"

    parts: int = 4
    bits: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("parts", "at least 1", self.parts >= 1)
        self.require("bits", f"1 to {MOST_BITS}", 1 <= self.bits <= MOST_BITS)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        """Find the codewords of every part, and the codes of every row."""
        check_finite(table)
        table = table.detach()
        widths = split_width(table.shape[1], self.parts)
        size = codebook_size(table, self.bits, len(widths), books=1)
        if not size:
            return FloatRows(weight=table.clone())
        codes = empty_codes(table, size, len(widths))
        codebook = table.new_empty(size, table.shape[1], dtype=torch.float32)
        if not table.is_meta:
            scaled, scale = in_range(table)
            codebook.copy_(codewords(scaled, widths, size, weights, seeded()))
            for first, rows in blocks(scaled):
                codes.write(nearest_codes(rows, codebook, widths).flatten(), 0, first * len(widths))
            codebook *= scale
        return ProductRows(codes=codes, codebook=codebook, widths=widths)

    def error_bound(self, table: Tensor) -> Tensor:
        """The largest error of each row as it is encoded without counts, ``[R, 1]``.

        It depends on the whole table; no bound follows from a row alone.
        """
        return largest_errors(self.encode(table), table)


def split_width(width: int, parts: int) -> tuple[int, ...]:
    """Cut C numbers into at most so many parts, the first ones wider by one where C is uneven."""
    parts = min(parts, width)
    return tuple(width // parts + (part < width % parts) for part in range(parts))


def codebook_size(table: Tensor, bits: int, parts: int, books: int) -> int:
    """Return K for a table ``[R, C]``, or 0 where fp32 rows take no more bytes.

    Args:
        table: the table; only its shape is read.
        bits: most bits of a code.
        parts: codes a row.
        books: numbers of a codeword of all codebooks together, by those of a row.
    """
    rows, width = table.shape
    size = min(2**bits, rows)
    words = -(-rows * parts * (size - 1).bit_length() // 32) if rows else 0
    return size if 4 * words + 4 * size * width * books < 4 * rows * width else 0


def empty_codes(table: Tensor, size: int, parts: int) -> PackedCodes:
    """Return codes below ``size``, so many a row."""
    return PackedCodes.empty([table.shape[0] * parts], [(size - 1).bit_length()], table.device)


def read_codes(codes: nn.Module, rows: Tensor, parts: int) -> Tensor:
    """Return the codes int64 ``[N, parts]`` of rows int64 ``[N]``."""
    index = rows[:, None] * parts + torch.arange(parts, device=rows.device)
    found: Tensor = codes(index, torch.zeros((), dtype=torch.int64, device=rows.device))
    return found


def seeded() -> torch.Generator:
    """Return the generator of an encoding: its result is a function of the table alone."""
    return torch.Generator().manual_seed(_SEED)


def in_range(table: Tensor) -> tuple[Tensor, float]:
    """Return the table as fp32 whose squares are in range, and what it is to be multiplied by."""
    exponent = math.frexp(float(table.abs().max()))[1]
    if abs(exponent) <= _SAFE_EXPONENT:
        return table.float(), 1.0
    return (table.double() * 2.0**-exponent).float(), 2.0**exponent


def sampled(
    table: Tensor, size: int, weights: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return the rows that codewords are fitted to, and their weights."""
    places, mass = thinned(len(table), max(_SAMPLE, _PER_CODEWORD * size), weights, generator)
    return table[places.to(table.device)], mass


def codewords(
    table: Tensor,
    widths: Sequence[int],
    size: int,
    weights: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Return the codewords of every part, ``[K, C]``."""
    points, mass = sampled(table, size, weights, generator)
    parts = torch.split(points, list(widths), dim=1)
    return torch.cat([k_means(one.contiguous(), size, mass, generator) for one in parts], 1)


def nearest_codes(rows: Tensor, codebook: Tensor, widths: Sequence[int]) -> Tensor:
    """Return the codes int64 ``[N, M]`` of rows ``[N, C]``."""
    pairs = zip(*(torch.split(one, list(widths), 1) for one in (rows, codebook)), strict=True)
    return torch.stack([nearest(part, book.contiguous())[0] for part, book in pairs], 1)


def blocks(table: Tensor) -> list[tuple[int, Tensor]]:
    """Return the table by blocks of rows, with the number of each one's first."""
    return [
        (first, table[first : first + _BLOCK_ROWS]) for first in range(0, len(table), _BLOCK_ROWS)
    ]
