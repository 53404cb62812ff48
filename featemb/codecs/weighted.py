"""Codecs that fit a table to how often its rows are read, and the wrapper that knows it.

The counts of ids are those that training expects (`featemb.frequency.expected_counts`). They are
pushed through the address of a table to its rows: a row that several ids read counts for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec
from featemb.frequency import expected_counts
from featemb.parts.base import Part
from featemb.schema import Schema

_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class CountingCodec(Codec):
    """Base of the codecs whose encoding depends on how often rows are read."""

    def encode(self, table: Tensor) -> Part:
        """Return the stored form of a table ``[R, C]``, all of its rows alike."""
        return self.weighed(table, None)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        """Return the stored form of a table ``[R, C]`` whose rows have weights ``[R]``."""
        raise NotImplementedError

    def counted(self, schema: Schema) -> Codec:
        """Weigh rows by the counts of the ids; with unbounded features not at all."""
        if not schema.bounded:
            return self
        return Weighted(codec=self, counts=lambda: _by_feature(schema))


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighted(Codec):
    """A codec on its way to a table, with the weights of what reads it; not to be named in texts.

    Attributes:
        codec: makes the stored form.
        counts: returns the weights, float64 on the CPU: a tensor a feature before an address, one
            of all rows after it. Nothing is computed until a table that has values is encoded.
        addressed: whether the weights are those of rows.
    """

    name: ClassVar[str] = "weighted"
    codec: CountingCodec
    counts: Callable[[], list[Tensor]]
    addressed: bool = False

    def __post_init__(self) -> None:
        """Nothing is checked: no user writes one."""

    def encode(self, table: Tensor) -> Part:
        """Encode a table with its rows' weights; without, where they are not known."""
        return self.codec.weighed(table, self._weights(table))

    def error_bound(self, table: Tensor) -> Tensor:
        """Return the largest error of each row under these weights, ``[R, 1]``."""
        return largest_errors(self.encode(table), table)

    def counted(self, schema: Schema) -> Codec:
        """Begin anew."""
        return self.codec.counted(schema)

    def only(self, wanted: Sequence[bool]) -> Codec:
        """Keep the counts of some features."""
        kept = [feature for feature, keep in enumerate(wanted) if keep]
        return replace(self, counts=lambda: [self.counts()[feature] for feature in kept])

    def at(self, address: nn.Module) -> Codec:
        """Push the counts of all ids to the rows that they read."""
        return replace(self, counts=lambda: [row_counts(self.counts(), address)], addressed=True)

    def inside(self) -> Codec:
        """Keep the weights of rows, as those of ids; counts of features tell nothing of rows."""
        return self if self.addressed else self.codec

    def rows(self, places: Tensor) -> Codec:
        """Keep the weights of some rows."""
        return replace(self, counts=lambda: [_taken(one, places) for one in self.counts()])

    def _weights(self, table: Tensor) -> Tensor | None:
        if table.is_meta or not self.addressed:
            return None
        (weights,) = self.counts()
        # a table may end with rows that no id reads, but not before a row that one does
        missing = table.shape[0] - len(weights)
        return torch.nn.functional.pad(weights, (0, missing)) if missing >= 0 else None


def row_counts(counts: Sequence[Tensor], address: nn.Module) -> Tensor:
    """Return how often each row is read, float64 ``[R]`` up to the last one that is.

    Args:
        counts: how often each id of a feature occurs, a tensor ``[n]`` a feature.
        address: (ids, feature) -> rows ``[..., L]``.
    """
    first = next(chain(address.buffers(), address.parameters()), None)
    device = torch.device("cpu") if first is None else first.device
    total = torch.zeros(0, dtype=torch.float64)
    for feature, own in enumerate(counts):
        for begin in range(0, len(own), _BLOCK):
            some = own[begin : begin + _BLOCK].double().cpu()
            ids = torch.arange(begin, begin + len(some), device=device)
            rows = address(ids, torch.tensor(feature, device=device)).cpu().view(len(some), -1)
            each = some[:, None].expand_as(rows).reshape(-1)
            found = torch.bincount(rows.reshape(-1), each, minlength=len(total))
            total = found.index_add_(0, torch.arange(len(total)), total)
    return total


def largest_errors(part: Part, table: Tensor) -> Tensor:
    """Return the largest error of each row of a stored form, ``[R, 1]``."""
    found = table.new_empty(table.shape[0], 1)
    for begin in range(0, table.shape[0], _BLOCK):
        some = table[begin : begin + _BLOCK]
        rows = torch.arange(begin, begin + len(some), device=table.device)
        found[begin : begin + len(some), 0] = (part(rows) - some).abs().amax(1)
    return found


def _by_feature(schema: Schema) -> list[Tensor]:
    counts = torch.from_numpy(expected_counts(schema))
    return list(torch.split(counts, list(schema.cardinalities)))


def _taken(weights: Tensor, places: Tensor) -> Tensor:
    """Return the weights of some rows; those beyond the last one that is read have none."""
    if not places.numel():
        return weights[:0]
    padded = torch.nn.functional.pad(weights, (0, max(0, int(places.max()) + 1 - len(weights))))
    return padded[places.cpu()]
