"""`Dataset`, `Split` and `Batch`: encoded data in memory, and its batches.

Shape letters: N rows of a split, B samples of a batch, F features, M numeric columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featemb.datasets.stream import Stream
from featemb.errors import ConfigError
from featemb.ids import Jagged
from featemb.schema import Schema

if TYPE_CHECKING:
    from featemb.datasets.encoding import Encoding


class Batch(NamedTuple):
    """One batch.

    Attributes:
        ids: int64 ``[B, F]``, or `Jagged` where a feature is multi-valued; 0 is missing or unknown.
        numeric: float32 ``[B, M]``, or None.
        label: float32 ``[B]`` in {0, 1}.
    """

    ids: Tensor | Jagged
    numeric: Tensor | None
    label: Tensor


class Bag(NamedTuple):
    """The bags of one multi-valued feature.

    Attributes:
        values: int32, all ids.
        offsets: int64 ``[N + 1]``; row n holds ``values[offsets[n]:offsets[n + 1]]``.
    """

    values: Tensor
    offsets: Tensor

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values int64 and lengths int64 ``[len(rows)]`` of some rows."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = lengths.cumsum(0)
        shift = torch.repeat_interleave(starts - (ends - lengths), lengths)
        positions = torch.arange(int(ends[-1]) if len(ends) else 0) + shift
        return self.values[positions].long(), lengths


def check_batch_size(batch_size: int) -> None:
    """Refuse a size that is none.

    Raises:
        ConfigError: names the value.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a positive integer, got {batch_size!r}")


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        label: float32 ``[N]`` in {0, 1}.
        ids: int32 or int64 ``[N, F]`` where all features are single-valued, else None.
        bags: for data with multi-valued features, one `Bag` a feature, else empty.
        numeric: float32 ``[N, M]``, or None.
        user: int64 ``[N]``, the group of each row for gAUC, or None.
    """

    label: Tensor
    ids: Tensor | None
    bags: Sequence[Bag] = ()
    numeric: Tensor | None = None
    user: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Tensor) -> Split:
        """Return the split of some rows, int64."""
        bags = []
        for bag in self.bags:
            values, lengths = bag.take(rows)
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            bags.append(Bag(values.int(), offsets))
        return Split(
            self.label[rows],
            None if self.ids is None else self.ids[rows],
            bags,
            None if self.numeric is None else self.numeric[rows],
            None if self.user is None else self.user[rows],
        )

    def batches(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        device: torch.device | str = "cpu",
    ) -> Stream[Batch]:
        """Yield the split's batches; the last one may be smaller.

        ``skip(n)`` of the iterator passes over the first n without reading them.

        Args:
            batch_size: samples of a batch.
            shuffle: whether rows come in an order decided by (seed, epoch), or as they lie.
            seed: of the order.
            epoch: of the order.
            device: where the batches are put.

        Raises:
            ConfigError: batch_size is not a positive integer.
        """
        check_batch_size(batch_size)

        def make(first: int) -> Iterator[Batch]:
            return self._batches(first, batch_size, (seed, epoch) if shuffle else None, device)

        return Stream(make, -(-len(self) // batch_size))

    def _batches(
        self, first: int, batch_size: int, drawn: tuple[int, int] | None, device: torch.device | str
    ) -> Iterator[Batch]:
        order = None
        if drawn is not None:
            order = torch.from_numpy(np.random.default_rng(drawn).permutation(len(self)))
        for start in range(first * batch_size, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            rows = torch.arange(start, stop) if order is None else order[start:stop]
            yield self._batch(rows, device)

    def _batch(self, rows: Tensor, device: torch.device | str) -> Batch:
        label = self.label.index_select(0, rows).to(device)
        numeric = None if self.numeric is None else self.numeric.index_select(0, rows).to(device)
        if self.ids is not None:
            return Batch(self.ids.index_select(0, rows).to(device).long(), numeric, label)
        values, lengths = zip(*(bag.take(rows) for bag in self.bags), strict=True)
        return Batch(Jagged(torch.cat(values), torch.cat(lengths)).to(device), numeric, label)


@dataclass(frozen=True)
class Dataset:
    """An encoded data set, in memory or in shards on disk.

    Attributes:
        name: registered name, or the file's stem.
        schema: features with cardinalities and training counts; names of numeric columns.
        splits: "train", "valid" and "test".
        fingerprint: SHA-256 over the encoded content.
        meta: protocol, source, meaning of the label, terms, as JSON-able values.
        encoding: what turned raw columns into ids, or None where ids were made directly.
    """

    name: str
    schema: Schema
    splits: Mapping[str, Split]
    fingerprint: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    encoding: Encoding | None = None
