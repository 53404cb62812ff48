"""`ShardedSplit`: rows that stay on disk, mapped into memory, and how they become batches.

Shape letters: N rows of a split, B samples of a batch, F features, M numeric columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from featemb.datasets.dataset import Bag, Batch, Dataset, Split, check_batch_size
from featemb.datasets.order import WINDOW, BlockOrder
from featemb.datasets.shard_index import Shard, read_index
from featemb.datasets.shard_rows import Array, ShardRows
from featemb.datasets.stream import Stream, ahead
from featemb.errors import DataError

CHUNK_ROWS = 32_768
AHEAD = 3


def open_shards(
    folder: str | os.PathLike[str], window: int = WINDOW, check: bool = True
) -> Dataset:
    """Open a folder of encoded shards as a data set; its rows stay on disk.

    Args:
        folder: as the encoding in bulk writes it.
        window: rows that are shuffled together (`featemb.datasets.order`); a window of the rows is
            in memory while batches are read.
        check: compare each shard's checksum when it is first read in this process.

    Raises:
        DataError: the folder holds no shards, a file is missing or cut short, a split has no rows,
            or the window is not a positive integer.
    """
    index = read_index(folder)
    for part, shards in index.splits.items():
        if not shards:
            raise DataError(f"{os.fspath(folder)!r}: the {part} split has no rows")
    schema = index.schema
    counts = index.counts()
    if counts:
        schema = schema.with_counts(counts)
    splits = {part: ShardedSplit(one, window, check) for part, one in index.splits.items()}
    meta = dict(index.meta) | {
        "user": index.recipe.user,
        "recipe": json.loads(index.recipe.to_json()),
        "window": window,
    }
    encoding = index.encoding()
    return Dataset(index.folder.name, schema, splits, index.fingerprint, meta, encoding)


class ShardedSplit(Split):
    """One part of a data set whose rows stay on disk.

    It gives the same batches as a `Split` of the same rows, except for the order of shuffled rows
    where there are more of them than a window (`featemb.datasets.order`). `label`, `user`, `ids`
    and `numeric` read all rows into memory at every use.

    Args:
        shards: in the order of rows.
        window: rows that are shuffled together.
        check: compare each shard's checksum when it is first read in this process.

    Raises:
        DataError: the window is not a positive integer.
    """

    def __init__(self, shards: Sequence[Shard], window: int = WINDOW, check: bool = True) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise DataError(f"the window of a shuffle must be a positive integer, got {window!r}")
        object.__setattr__(self, "rows", ShardRows(shards, check))
        object.__setattr__(self, "window", window)

    rows: ShardRows
    window: int

    def __repr__(self) -> str:
        return f"ShardedSplit({len(self)} rows in {len(self.rows.shards)} shards)"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label(self) -> Tensor:
        """Float32 ``[N]``."""
        return self._all("label")

    @property
    def ids(self) -> Tensor:
        """Int32 or int64 ``[N, F]``."""
        return self._all("ids")

    @property
    def bags(self) -> Sequence[Bag]:
        """Shards hold no multi-valued features."""
        return ()

    @property
    def numeric(self) -> Tensor | None:
        """Float32 ``[N, M]``, or None."""
        return self._all("numeric") if self.rows.has("numeric") else None

    @property
    def user(self) -> Tensor | None:
        """Int64 ``[N]``, or None."""
        return self._all("user") if self.rows.has("user") else None

    def _all(self, kind: str) -> Tensor:
        shape, kind_type = self.rows.layout(kind)
        found = np.empty((len(self), *shape), kind_type)
        self.rows.read(kind, 0, len(self), found)
        return torch.from_numpy(found)

    def take(self, rows: Tensor) -> Split:
        """Return some rows, int64, as a split in memory."""
        where = rows.numpy()
        found = {
            kind: torch.from_numpy(self.rows.take(kind, where))
            for kind in ("label", "ids", "numeric", "user")
            if self.rows.has(kind)
        }
        return Split(found["label"], found["ids"], (), found.get("numeric"), found.get("user"))

    def batches(
        self,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        device: torch.device | str = "cpu",
    ) -> Stream[Batch]:
        """Yield the split's batches; a thread reads ahead. As `Split.batches`."""
        check_batch_size(batch_size)
        order = BlockOrder(len(self), self.window, seed if shuffle else None, epoch)
        count = -(-len(self) // batch_size)
        a_chunk = max(1, CHUNK_ROWS // batch_size)  # batches

        def make(first: int) -> Iterator[Batch]:
            chunks = Chunks(self.rows, order, a_chunk * batch_size)
            number, skip = divmod(first, a_chunk)
            for chunk in ahead(chunks, number, -(-count // a_chunk), AHEAD):
                for start in range(skip * batch_size, len(chunk.label), batch_size):
                    yield _cut(chunk, start, start + batch_size, device)
                skip = 0

        return Stream(make, count)


def _cut(chunk: Batch, start: int, stop: int, device: torch.device | str) -> Batch:
    ids, numeric, label = chunk
    assert isinstance(ids, Tensor)
    part = None if numeric is None else numeric[start:stop].to(device)
    return Batch(ids[start:stop].to(device), part, label[start:stop].to(device))


class Chunks:
    """Stretches of an epoch's order as tensors; one window of rows is in memory.

    Args:
        rows: of the split.
        order: of the epoch.
        size: rows of a chunk.
    """

    def __init__(self, rows: ShardRows, order: BlockOrder, size: int) -> None:
        self._rows, self._order, self._size = rows, order, size
        self._starts = order.starts
        self._kinds = [kind for kind in ("ids", "numeric", "label") if rows.has(kind)]
        self._window: int | None = None
        self._held: dict[str, Array] = {}
        self._places: Array | None = None

    def __call__(self, number: int) -> Batch:
        """Return a chunk: ids int64 ``[n, F]``, numeric float32 ``[n, M]``, label float32."""
        first = number * self._size
        last = min(first + self._size, len(self._rows))
        found = {kind: self._empty(kind, last - first) for kind in self._kinds}
        done = 0
        while first + done < last:
            window = int(np.searchsorted(self._starts, first + done, side="right")) - 1
            self._load(window)
            start = first + done - int(self._starts[window])
            stop = min(last, int(self._starts[window + 1])) - int(self._starts[window])
            for kind, out in found.items():
                self._copy(kind, start, stop, out[done : done + stop - start])
            done += stop - start
        numeric = torch.from_numpy(found["numeric"]) if "numeric" in found else None
        return Batch(torch.from_numpy(found["ids"]), numeric, torch.from_numpy(found["label"]))

    def _empty(self, kind: str, rows: int) -> Array:
        shape, kind_type = self._rows.layout(kind)
        return np.empty((rows, *shape), np.int64 if kind == "ids" else kind_type)

    def _copy(self, kind: str, start: int, stop: int, out: Array) -> None:
        held = self._held[kind]
        if self._places is None:
            out[...] = held[start:stop]
        elif out.dtype == held.dtype:
            np.take(held, self._places[start:stop], axis=0, out=out, mode="clip")
        else:
            out[...] = np.take(held, self._places[start:stop], axis=0)

    def _load(self, window: int) -> None:
        """Read the rows of a window; those of the last one make way."""
        if window == self._window:
            return
        self._window = None  # until it is whole
        length = int(self._starts[window + 1] - self._starts[window])
        for kind in self._kinds:
            shape, kind_type = self._rows.layout(kind)
            if kind not in self._held or len(self._held[kind]) < length:
                self._held[kind] = np.empty((length, *shape), kind_type)
            done = 0
            for first, last in self._order.pieces(window):
                self._rows.read(kind, first, last, self._held[kind][done : done + last - first])
                done += last - first
        self._places = self._order.places(window, length)
        self._window = window
