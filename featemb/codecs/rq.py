"""rq: residual-quantised rows, sums of one codeword of each of several codebooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.codecs.floats import FloatRows
from featemb.codecs.pq import (
    MOST_BITS,
    blocks,
    codebook_size,
    empty_codes,
    in_range,
    read_codes,
    sampled,
    seeded,
)
from featemb.codecs.weighted import CountingCodec, largest_errors
from featemb.config import register
from featemb.lloyd import grouped_means, k_means, positive
from featemb.parts.base import Part

_BLOCK_NUMBERS = 1 << 22
_ROUNDS = 8
_SWEEPS = 2


class ResidualRows(Part):
    """Rows that are sums of codewords; ``[...]`` rows give fp32 ``[..., C]``.

    Attributes:
        codes: part (index, group) -> code; row r has those from ``r S`` on, of its S stages.
        codebooks: fp32 ``[S, K, C]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"codebooks": "codebooks"}
    codes: nn.Module
    codebooks: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Gather and add codewords."""
        stages, _, width = self.codebooks.shape
        codes = read_codes(self.codes, rows.reshape(-1), stages)
        return _summed(codes, self.codebooks).view(*rows.shape, width)


@register
@dataclass(frozen=True, kw_only=True)
class RQ(CountingCodec):
    """Residual quantisation: ``x ~ sum_s B_s[q_s]``, each stage codes what the last ones left.

    Juang and Gray, "Multiple stage vector quantization for speech coding", ICASSP 1982; the codes
    by beam search as in Babenko and Lempitsky, "Tree Quantization", CVPR 2015, and Liu et al.,
    "Improved Residual Vector Quantization", 2015 (1509.05195). A stage's codebook is the k-means
    (`featemb.lloyd`) of the residuals; then all codebooks are fitted again to all codes, by exact
    steps of one codebook at a time, and rows are coded anew, in rounds. Rows are weighed by how
    often they are read. Of large tables the codebooks are fitted to a sample. A function of the
    table and these counts alone.

    Small tables are stored as fp32, by bytes, as in `pq`.

    Bytes: ``R stages bits / 8 + 4 K stages C`` with ``K = min(2^bits, R)``, or ``4 R C``.

    Attributes:
        stages: codes a row.
        bits: bits a code, 1 to 16.
        beam: how many partial codes a row's search goes on with.
    """

    name: ClassVar[str] = "rq"

    stages: int = 4
    bits: int = 8
    beam: int = 5

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("stages", "at least 1", self.stages >= 1)
        self.require("bits", f"1 to {MOST_BITS}", 1 <= self.bits <= MOST_BITS)
        self.require("beam", "at least 1", self.beam >= 1)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        """Find the codebooks, and the codes of every row."""
        check_finite(table)
        table = table.detach()
        size = codebook_size(table, self.bits, self.stages, books=self.stages)
        if not size:
            return FloatRows(weight=table.clone())
        codes = empty_codes(table, size, self.stages)
        shape = (self.stages, size, table.shape[1])
        codebooks = table.new_empty(shape, dtype=torch.float32)
        if not table.is_meta:
            scaled, scale = in_range(table)
            generator = seeded()
            points, mass = sampled(scaled, size, weights, generator)
            codebooks.copy_(fitted(points, self.stages, size, self.beam, mass, generator))
            for first, rows in blocks(scaled):
                found = searched(rows, codebooks, self.beam)
                codes.write(found.flatten(), 0, first * self.stages)
            codebooks *= scale
        return ResidualRows(codes=codes, codebooks=codebooks)

    def error_bound(self, table: Tensor) -> Tensor:
        """The largest error of each row as it is encoded without counts, ``[R, 1]``.

        It depends on the whole table; no bound follows from a row alone.
        """
        return largest_errors(self.encode(table), table)


def fitted(
    points: Tensor,
    stages: int,
    size: int,
    beam: int,
    weights: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Return codebooks ``[S, K, C]`` for points ``[N, C]`` of weights ``[N]``."""
    mass = positive(weights, points)
    books = points.new_empty(0, size, points.shape[1])
    residual, codes = points, torch.empty(0)
    for _ in range(stages):
        book = k_means(residual, size, mass, generator)
        books = torch.cat([books, book[None]])
        codes = searched(points, books, beam)
        residual = points - _summed(codes, books)
    best = (_error(residual, mass), books)
    for _ in range(_ROUNDS):
        books = _refitted(points, codes, books, mass)
        codes = searched(points, books, beam)
        error = _error(points - _summed(codes, books), mass)
        best = min(best, (error, books), key=lambda one: one[0])
    return best[1]


def searched(points: Tensor, books: Tensor, beam: int) -> Tensor:
    """Return the codes int64 ``[N, S]`` of points ``[N, C]``, by beam search."""
    block = max(1, _BLOCK_NUMBERS // (books.shape[1] * beam))
    found = [_searched(part, books, beam) for part in torch.split(points, block)]
    return torch.cat(found)


def _searched(points: Tensor, books: Tensor, beam: int) -> Tensor:
    size = books.shape[1]
    residual = points[:, None]  # [n, b, C]
    codes = torch.empty(len(points), 1, 0, dtype=torch.int64, device=points.device)
    for book in books:
        score = torch.addmm(book.square().sum(1), residual.flatten(0, 1), book.T, alpha=-2.0)
        score = score.view(len(points), -1, size) + residual.square().sum(2, keepdim=True)
        few = min(beam, score.shape[1] * size)
        place = score.flatten(1).topk(few, largest=False).indices
        parent, code = place // size, place % size
        codes = torch.cat([_picked(codes, parent), code[..., None]], 2)
        residual = _picked(residual, parent) - book[code]
    last = residual.square().sum(2).argmin(1)
    return _picked(codes, last[:, None])[:, 0]


def _picked(beams: Tensor, parent: Tensor) -> Tensor:
    """Return beams ``[n, b', X]`` of beams ``[n, b, X]`` by their numbers ``[n, b']``."""
    return beams.gather(1, parent[..., None].expand(-1, -1, beams.shape[2]))


def _refitted(points: Tensor, codes: Tensor, books: Tensor, weights: Tensor) -> Tensor:
    """Return codebooks of less error for fixed codes: the best of each, given the others."""
    books = books.clone()
    for _ in range(_SWEEPS):
        for stage in range(len(books)):
            own = codes[:, stage]
            rest = points - _summed(codes, books) + books[stage][own]
            means, mass = grouped_means(rest, own, weights, books.shape[1])
            books[stage] = torch.where(mass[:, None] > 0, means.to(books), books[stage])
    return books


def _summed(codes: Tensor, books: Tensor) -> Tensor:
    """Return the sums ``[N, C]`` of the codewords of codes ``[N, S]``."""
    first = torch.arange(len(books), device=codes.device) * books.shape[1]
    return books.flatten(0, 1)[codes + first].sum(1)


def _error(residual: Tensor, weights: Tensor) -> float:
    return float((residual.square().sum(1) * weights).sum(dtype=torch.float64))
