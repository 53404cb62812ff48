"""Tables of which each feature keeps some rows and some columns: their bytes and served form.

Shape letters: F features, n_f ids and r_f kept rows of width k_f of feature f, N ids in all.

Features of one width share a table ``[R, k]`` and an index of their kept ids, see
`featemb.parts.kept`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featemb.codecs.base import Codec
from featemb.errors import BudgetError
from featemb.parts import Concat, Lookup, OffsetAddress, Source, Split
from featemb.parts.kept import EveryPosition, KeptRows, index_bytes, smallest_index


class RaggedSize:
    """Serving bytes of every choice of widths and kept rows, fast enough for a search.

    Args:
        cardinalities: n_f.
        codec: format of the rows.
    """

    def __init__(self, cardinalities: Sequence[int], codec: Codec) -> None:
        self.cardinalities, self.codec = tuple(cardinalities), codec

    def __call__(self, widths: Sequence[int], kept: Sequence[int]) -> int:
        """Return the bytes of features of ``widths[f]`` columns and ``kept[f]`` rows."""
        groups: dict[int, list[int]] = {}
        for width, rows, total in zip(widths, kept, self.cardinalities, strict=True):
            group = groups.setdefault(width, [0, 0])
            group[0] += rows
            group[1] += total
        return sum(self.group(width, rows, total) for width, (rows, total) in groups.items())

    def group(self, width: int, rows: int, total: int) -> int:
        """Return the bytes of ``rows`` kept rows of ``total``, of one width."""
        return self.codec.stored_bytes(rows, width) + index_bytes(rows, total)


def ragged_source(
    table: Tensor,
    keep: Tensor,
    cardinalities: Sequence[int],
    widths: Sequence[int],
    kept: Sequence[int],
    codec: Codec,
) -> Source:
    """Return the served form: vectors ``[..., D]``, zeros where a row or a column is not kept.

    Args:
        table: ``[N, D]``.
        keep: bool ``[N]``.
        cardinalities: n_f.
        widths: k_f.
        kept: r_f, how many entries of ``keep`` are true: what the meta device goes by.
        codec: format of the rows.
    """
    dim = table.shape[1]
    order = sorted(set(widths), reverse=True)
    tables = list(torch.split(table, list(cardinalities)))
    masks = list(torch.split(keep, list(cardinalities)))
    sources = []
    for width in order:
        own = [f for f, one in enumerate(widths) if one == width]
        sizes = [cardinalities[f] for f in own]
        if keep.is_meta:
            rows = table.new_empty(sum(kept[f] for f in own), width)
            places = torch.empty(rows.shape[0], dtype=torch.int64, device="meta")
        else:
            places = torch.cat([masks[f] for f in own]).nonzero()[:, 0]
            rows = torch.cat([tables[f][masks[f], :width] for f in own])
        index = smallest_index(places, sum(sizes))
        address = OffsetAddress.of(sizes)
        reading = codec.only([one == width for one in widths]).at(address)
        coded = reading.rows(places).encode(rows)
        whole = isinstance(index, EveryPosition)
        part = coded if whole else KeptRows(index=index, rows=coded)
        sources.append(Lookup(address=address, rows=part, combine=Concat()))
    if len(sources) == 1 and order[0] == dim:
        return sources[0]
    which = tuple(order.index(width) for width in widths)
    return Split(sources=sources, which=which, dim=dim)


class RowOrder:
    """All rows in the order in which they are kept: the best of each feature first, then by score.

    Args:
        scores: ``[N]``.
        cardinalities: n_f.

    Attributes:
        rank: int64 ``[N]``, place of each row in the order.
    """

    def __init__(self, scores: Tensor, cardinalities: Sequence[int]) -> None:
        scores = scores.detach().double().cpu()
        parts = torch.split(scores, list(cardinalities))
        first = torch.cat([_first_best(part) for part in parts])
        order = torch.argsort(
            torch.where(first, float("inf"), scores), descending=True, stable=True
        )
        self.rank = torch.empty_like(order)
        self.rank[order] = torch.arange(len(order))
        ranks = torch.split(self.rank, list(cardinalities))
        self._ranks = [one.sort().values.numpy() for one in ranks]

    def kept(self, count: int) -> tuple[int, ...]:
        """Return r_f where the first ``count`` rows of the order are kept."""
        return tuple(int(ranks.searchsorted(count)) for ranks in self._ranks)


def _first_best(scores: Tensor) -> Tensor:
    best = torch.zeros_like(scores, dtype=torch.bool)
    best[scores.argmax()] = True
    return best


def fit_rows(size: RaggedSize, order: RowOrder, widths: Sequence[int], limit: int) -> int:
    """Return how many rows of an order fit with these widths: at least F, or 0 for none."""
    features, total = len(widths), len(order.rank)
    if size(widths, size.cardinalities) <= limit:
        return total
    low, high = features, total
    if size(widths, order.kept(low)) > limit:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        if size(widths, order.kept(middle)) <= limit:
            low = middle
        else:
            high = middle
    return low


Shape = tuple[tuple[int, ...], tuple[int, ...]]


def uniform_shape(size: RaggedSize, dim: int, limit: int, prune: str, name: str) -> Shape:
    """Return widths and numbers of kept rows without a search: one width for all features.

    It is the smallest width at which not all rows fit, and as many rows as do; for ``prune="rows"``
    D, and for "dims" the largest width at which all rows fit, features widened in their order.

    Raises:
        BudgetError: a row of one number for each feature is above the limit.
    """
    cardinalities = size.cardinalities
    features, total = len(cardinalities), sum(cardinalities)
    if prune == "dims":
        return _widest(size, dim, limit, name), cardinalities
    width = dim
    if prune == "both":
        over = (w for w in range(1, dim) if size.group(w, total, total) > limit)
        width = next(over, dim)
    if size.group(width, total, total) <= limit:
        return (width,) * features, cardinalities
    floor = size.group(width, features, total)
    if floor > limit:
        raise _too_small(name, floor, limit)
    low, high = features, total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size.group(width, middle, total) <= limit else (low, middle)
    return (width,) * features, _spread(low, cardinalities)


def _widest(size: RaggedSize, dim: int, limit: int, name: str) -> tuple[int, ...]:
    cardinalities = size.cardinalities
    widths = [1] * len(cardinalities)
    floor = size(widths, cardinalities)
    if floor > limit:
        raise _too_small(name, floor, limit)
    for width in range(2, dim + 1):
        for feature in range(len(widths)):
            wider = [*widths[:feature], width, *widths[feature + 1 :]]
            if size(wider, cardinalities) <= limit:
                widths = wider
    return tuple(widths)


def _spread(rows: int, cardinalities: Sequence[int]) -> tuple[int, ...]:
    """Return numbers of kept rows, at least one a feature, of a given sum; the first ones fill."""
    left, kept = rows - len(cardinalities), []
    for n in cardinalities:
        kept.append(1 + min(left, n - 1))
        left -= kept[-1] - 1
    return tuple(kept)


def _too_small(name: str, floor: int, limit: int) -> BudgetError:
    return BudgetError(f"{name} needs at least {floor:,} bytes, the limit is {limit:,}", floor)
