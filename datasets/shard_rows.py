"""`ShardRows`: the rows of some shards as one stretch, mapped into memory and checked."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featemb.datasets.shard_index import Shard, verify_shard
from featemb.errors import DataError

Array = npt.NDArray[Any]


class ShardRows:
    """The rows of some shards, one after another; a shard is checked when it is first read.

    Args:
        shards: in the order of rows.
        check: compare each shard's checksum when it is first read.
    """

    def __init__(self, shards: Sequence[Shard], check: bool = True) -> None:
        self.shards = list(shards)
        self.starts = [0, *np.cumsum([one.rows for one in shards]).tolist()]
        self._unchecked = set(range(len(self.shards))) if check else set()
        self._maps: dict[tuple[int, str], Array] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def has(self, kind: str) -> bool:
        """Whether the shards hold columns of a kind."""
        return bool(self.shards) and kind in self.shards[0].files

    def layout(self, kind: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape of a row and type of a kind of columns."""
        array = self._map(0, kind)
        return array.shape[1:], array.dtype

    def read(self, kind: str, first: int, last: int, out: Array) -> None:
        """Copy rows ``[first, last)`` into an array.

        Raises:
            DataError: a shard is damaged, missing or cut short; the message names it.
        """
        number, done = bisect_right(self.starts, first) - 1, 0
        while first + done < last:
            start = first + done - self.starts[number]
            stop = min(last - self.starts[number], self.shards[number].rows)
            out[done : done + stop - start] = self._checked(number, kind)[start:stop]
            done, number = done + stop - start, number + 1

    def take(self, kind: str, rows: Array) -> Array:
        """Return some rows, in their order.

        Raises:
            DataError: as `read`.
        """
        shape, kind_type = self.layout(kind)
        found = np.empty((len(rows), *shape), kind_type)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(which):
            here = which == number
            found[here] = self._checked(int(number), kind)[rows[here] - self.starts[number]]
        return found

    def _checked(self, number: int, kind: str) -> Array:
        with self._lock:
            if number in self._unchecked:
                verify_shard(self.shards[number])
                self._unchecked.discard(number)
        array = self._map(number, kind)
        shard = self.shards[number]
        try:  # reading a mapped file that was cut short would kill the process
            size = os.stat(shard.path(kind)).st_size
        except OSError as error:
            raise DataError(f"shard {shard.path(kind)} cannot be read: {error}") from error
        if size != shard.files[kind]["bytes"]:
            raise DataError(
                f"shard {shard.path(kind)} has {size} bytes, not {shard.files[kind]['bytes']}"
            )
        return array

    def _map(self, number: int, kind: str) -> Array:
        if (number, kind) not in self._maps:
            self._maps[number, kind] = self.shards[number].open(kind)
        return self._maps[number, kind]
