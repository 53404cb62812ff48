"""`svd`: low-rank rows, the best of their rank, over a basis that the whole table shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec, check_finite, codec_by_name
from featemb.codecs.pq import blocks, in_range
from featemb.codecs.weighted import CountingCodec, largest_errors
from featemb.config import register
from featemb.errors import ConfigError, DataError
from featemb.parts.base import Part

_LEAST_WEIGHT = 1e-9
_SAFE_REACH = 2.0**120
_HALF_REACH = 2.0**15


class LowRankRows(Part):
    """Narrow rows times a basis; ``[...]`` rows give fp32 ``[..., C]``.

    Attributes:
        rows: rows ``[...]`` -> ``[..., r]``.
        basis: fp32 ``[r, C]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"basis": "projections"}
    rows: nn.Module
    basis: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Gather narrow rows and widen them."""
        narrow: Tensor = self.rows(rows)
        return narrow @ self.basis


@register
@dataclass(frozen=True, kw_only=True)
class SVD(CountingCodec):
    """Truncated singular value decomposition: ``x ~ u V``, u of r numbers, V ``[r, C]`` shared.

    V is the top eigenvectors of the rows' second moments (in fp64, the rows weighted by how often
    they are read), and ``u = x V^T``: no table of this rank has a smaller weighted squared error
    (Eckart and Young, 1936). The narrow rows are stored by a codec of their own. Rows that are
    never read have next to no weight: they choose the axes that the others leave free.

    Where this takes no fewer bytes than the inner codec's plain rows, as in small tables, those are
    stored; the shape alone decides.

    Bytes: those of R rows of r numbers by the inner codec, and ``4 r C``.

    Attributes:
        rank: r, at most C; None takes half of C.
        inner: text of the narrow rows' codec, such as "int8".
    """

    name: ClassVar[str] = "svd"

    rank: int | None = None
    inner: str = "fp32"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("rank", "at least 1", self.rank is None or self.rank >= 1)
        if self.inner.partition("(")[0] == self.name:
            raise ConfigError(f"{self.name}: inner must be another codec, got {self.inner!r}")
        codec_by_name(self.inner)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        """Project the rows on their first principal axes."""
        check_finite(table)
        table = table.detach()
        inner, width = codec_by_name(self.inner), table.shape[1]
        rank = min(width, max(1, width // 2) if self.rank is None else self.rank)
        if self._bytes(inner, table.shape, rank) >= _size(inner.encode(_plan(table.shape))):
            return _encoded(inner, table, weights)
        if table.is_meta:
            narrow = table.new_empty(table.shape[0], rank)
            return LowRankRows(rows=inner.encode(narrow), basis=table.new_empty(rank, width))
        axes = principal_axes(table, weights, rank)
        size = _shrinking(table, axes)
        narrow = torch.cat([(some.double() @ axes.T / size).float() for _, some in blocks(table)])
        part = LowRankRows(rows=_encoded(inner, narrow, weights), basis=(axes * size).float())
        check_reach(part, table, self.name)
        return part

    def error_bound(self, table: Tensor) -> Tensor:
        """The largest error of each row as it is encoded without counts, ``[R, 1]``.

        It depends on the whole table; no bound follows from a row alone.
        """
        return largest_errors(self.encode(table), table)

    @staticmethod
    def _bytes(inner: Codec, shape: torch.Size, rank: int) -> int:
        return _size(inner.encode(_plan(torch.Size((shape[0], rank))))) + 4 * rank * shape[1]


def principal_axes(table: Tensor, weights: Tensor | None, rank: int) -> Tensor:
    """Return the first axes, fp64 ``[r, C]``, of a table's uncentred second moments.

    Each axis has the sign that makes its largest number positive.

    Args:
        table: ``[R, C]``.
        weights: of the rows, ``[R]``; those below a 10^9-th of their mean count as that much.
        rank: r.
    """
    scaled, _ = in_range(table)
    if weights is not None:
        weights = weights.clamp(min=float(weights.mean()) * _LEAST_WEIGHT)
    moments = table.new_zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for first, some in blocks(scaled):
        rows = some.double()
        if weights is None:
            moments += rows.T @ rows
        else:
            own = weights[first : first + len(rows), None].to(rows)
            moments += rows.T @ (rows * own)
    axes = torch.linalg.eigh(moments).eigenvectors.T.flip(0)[:rank]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    signed: Tensor = axes * torch.where(largest < 0, -1.0, 1.0)
    return signed


def check_reach(part: Part, table: Tensor, name: str) -> None:
    """Refuse a table whose stored form is beyond fp32: sums of what it holds, so near its end.

    Raises:
        DataError: names the first such row.
    """
    if float(table.abs().max()) <= _SAFE_REACH:
        return
    for first, some in blocks(table):
        rows = torch.arange(first, first + len(some), device=table.device)
        wrong = ~torch.isfinite(part(rows)).all(1)
        if wrong.any():
            row = first + int(wrong.nonzero()[0])
            raise DataError(f"row {row} exceeds the range of {name} (fp32's, of sums); use fp32")


def _shrinking(table: Tensor, axes: Tensor) -> float:
    """Return a power of 2 by which narrow rows fit the formats that plain ones do.

    They are longer by up to the root of C; fp16 and fp32 end.
    """
    reach = float(table.abs().max())
    longest = max(float((some.double() @ axes.T).abs().max()) for _, some in blocks(table))
    if longest <= _HALF_REACH:
        return 1.0
    return 2.0 ** max(0, math.ceil(math.log2(longest / reach)))


def _encoded(codec: Codec, table: Tensor, weights: Tensor | None) -> Part:
    if isinstance(codec, CountingCodec):
        return codec.weighed(table, weights)
    return codec.encode(table)


def _plan(shape: torch.Size) -> Tensor:
    return torch.empty(shape, device="meta")


def _size(part: Part) -> int:
    return sum(one.numel() * one.element_size() for one in part.buffers())
