"""Tensor-train rows: a vector is a chain of matrix products over the digits of its id."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb.ids import tracing
from featemb.parts.address import DigitAddress
from featemb.parts.base import Source
from featemb.rows import distinct_rows

_TILE = 8  # ids that share one copy of a slice
_WORTH = 4096  # distinct ids that share slices when serving: fewer share little
_INT32 = 2**31 - 1  # an inner core never has more rows: they are about the cube root of the ids
_CHUNK = 2**20  # numbers of gathered slices held at once when serving: they stay in the cache


class TensorTrain(Source):
    """``e[j_1, ..., j_K] = G_1[i_1, :, j_1, :] G_2[i_2, :, j_2, :] ... G_K[i_K, :, j_K, :]``.

    i_k are the digits of an id and j_k those of the column, j_1 the most significant. Core k is a
    table whose row ``offset[f] + i_k`` holds the slice ``[r_{k-1}, q_k, r_k]`` of feature f, with
    ``r_0 = r_K = 1`` and r between; ``q_1 ... q_K = D``.

    Attributes:
        address: (ids, feature) -> rows ``[..., K]``, column k for core k.
        factors: q_k.
        rank: r.
        first: rows of core 1, ``[..., q_1 r]``.
        second: rows of core 2.
        third: rows of core 3, or None where K = 2.
        fourth: rows of core 4, or None where K < 4.
    """

    address: nn.Module
    factors: tuple[int, ...]
    rank: int
    first: nn.Module
    second: nn.Module
    third: nn.Module | None
    fourth: nn.Module | None

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``; every distinct (feature, id) is computed once."""
        feature = feature + torch.zeros_like(ids)  # the shape of both
        ids = ids.expand_as(feature)
        if tracing():
            rows = self.address(ids.reshape(-1), feature.reshape(-1))
            return self._product(rows).view(*ids.shape, prod(self.factors))
        assert isinstance(self.address, DigitAddress)
        features = len(self.address.offsets[0])
        keys, inverse = torch.unique(ids * features + feature, return_inverse=True)
        rows = self.address(keys // features, keys % features)
        if self.training:
            return F.embedding(inverse, self._tiled(rows))
        return F.embedding(inverse, torch.cat(self._served(rows)))

    def _served(self, rows: Tensor) -> list[Tensor]:
        """Return ``[N, D]`` in pieces, for rows ``[N, K]``.

        Products of matrices round by their shape: where slices are shared, answers differ from
        those of a trace, which computes every id, in the last bits.
        """
        if len(rows) >= _WORTH:
            return [self._tiled(piece) for piece in torch.split(rows, _WORTH)]
        widest = self.rank * max(self.factors) * (self.rank if len(self.factors) > 2 else 1)
        return [self._product(piece) for piece in torch.split(rows, max(1, _CHUNK // widest))]

    def _cores(self) -> list[nn.Module]:
        cores = (self.first, self.second, self.third, self.fourth)
        return [core for core in cores if core is not None]

    def _product(self, rows: Tensor) -> Tensor:
        """Return ``[N, D]`` for rows ``[N, K]``: a slice is gathered for every id and core."""
        left = self.first(rows[:, 0])
        for number, core in enumerate(self._cores()[1:], start=1):
            left = self._times(left, core(rows[:, number]), ids=1)
        vectors: Tensor = left
        return vectors

    def _times(self, left: Tensor, right: Tensor, ids: int) -> Tensor:
        """Multiply ``[M ids, Q r]`` by slices ``[M, r q r']``: ``[M ids, Q q r']``."""
        count, rank = right.shape[0], self.rank
        before, after = left.shape[1] // rank, right.shape[1] // rank
        product = left.reshape(count, before * ids, rank) @ right.view(count, rank, after)
        return product.view(count * ids, before * after)

    def _tiled(self, rows: Tensor) -> Tensor:
        """Return ``[N, D]`` for rows ``[N, K]``; ids that share an inner slice share its copies.

        An inner slice has ``r^2 q`` numbers: one a lookup would be the largest tensor of a step.
        """
        cores = self._cores()
        left = self.first(rows[:, 0])
        for number, core in enumerate(cores[1:-1], start=1):
            slices, place = tiles(rows[:, number], _INT32, _TILE)
            padded = left.new_zeros(len(slices) * _TILE, left.shape[1]).index_copy(0, place, left)
            left = self._times(padded, core(slices), ids=_TILE).index_select(0, place)
        return self._times(left, cores[-1](rows[:, -1]), ids=1)


def tiles(rows: Tensor, num_rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Sort rows into tiles of ``size`` places; all places of a tile hold the same row.

    Args:
        rows: int64 ``[N]``.
        num_rows: all rows are below it.
        size: places of a tile.

    Returns:
        The row of each tile, int64 ``[T]``, and the place of each input, int64 ``[N]``, below
        ``T size``. Tiles are full but for the last one of each row.
    """
    distinct, order, starts = distinct_rows(rows, num_rows)
    counts = torch.diff(starts, append=starts.new_tensor([rows.numel()]))
    per_row = (counts + size - 1) // size
    first_place = (per_row.cumsum(0) - per_row) * size
    sorted_place = torch.arange(rows.numel(), device=rows.device)
    sorted_place += (first_place - starts).repeat_interleave(counts)
    place = torch.empty_like(order).index_copy_(0, order, sorted_place)
    return distinct.repeat_interleave(per_row), place


class HotLookup(Source):
    """Private rows for frequent ids, another source for the rest.

    Attributes:
        hot: part that gives an id's private row, or -1.
        rows: rows ``[...]`` -> vectors ``[..., D]``.
        cold: a source.
    """

    hot: nn.Module
    rows: nn.Module
    cold: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``; outside of traces the rest is computed for the rest only."""
        feature = feature + torch.zeros_like(ids)  # the shape of both
        ids = ids.expand_as(feature)
        row = self.hot(ids, feature)
        if tracing():
            private = self.rows(row.clamp(min=0))
            return torch.where(row[..., None] >= 0, private, self.cold(ids, feature))
        flat = row.reshape(-1)
        is_hot = flat >= 0
        here, there = is_hot.nonzero()[:, 0], (~is_hot).nonzero()[:, 0]
        found = []
        if here.numel() or not there.numel():
            found.append(self.rows(flat[here]))
        if there.numel():
            found.append(self.cold(ids.reshape(-1)[there], feature.reshape(-1)[there]))
        vectors = torch.cat(found)
        joined = vectors.new_empty(vectors.shape).index_copy(0, torch.cat([here, there]), vectors)
        return joined.view(*ids.shape, vectors.shape[1])
