"""`BlockOrder`: in which order an epoch reads rows that do not fit into memory.

A split is cut into blocks of neighbouring rows. An epoch draws an order of the blocks, takes as
many of them at a time as a window holds, and shuffles the window's rows. So a window holds blocks
from all over the split, reading is sequential within a block, and memory is that of one window. A
split of at most a window is shuffled as a whole, in the order of one in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
WINDOW = 1 << 20
BLOCK = 4096
_BLOCKS = 64  # that a window holds, at least


@dataclass(frozen=True)
class BlockOrder:
    """The order of an epoch's rows, decided by its settings alone.

    Attributes:
        rows: rows of the split.
        window: rows that are shuffled together, at most; rounded down to whole blocks, at least
            one.
        seed: with ``epoch``, what the order is drawn from; None: rows come as they lie.
        epoch: number of the epoch.
        block: rows of a block, at most; so few that a window holds at least 64 blocks.
    """

    rows: int
    window: int = WINDOW
    seed: int | None = None
    epoch: int = 0
    block: int = BLOCK

    @property
    def starts(self) -> Rows:
        """Place in the order at which each window starts, and the end."""
        lengths = self._block_lengths()[self._blocks()]
        edges = np.arange(0, len(lengths), self._blocks_a_window())
        return np.concatenate([[0], np.add.reduceat(lengths, edges).cumsum()])

    def pieces(self, window: int) -> list[tuple[int, int]]:
        """Return the stretches ``[first, last)`` of rows that a window holds, as it reads them."""
        width = self._blocks_a_window()
        blocks = self._blocks()[window * width : (window + 1) * width]
        return [
            (int(b) * self._size(), min((int(b) + 1) * self._size(), self.rows)) for b in blocks
        ]

    def places(self, window: int, length: int) -> Rows | None:
        """Return the order of a window's rows, as places in what it read; None: as they lie."""
        if self.seed is None:
            return None
        whole = self.rows <= self.window
        drawn = [self.seed, self.epoch] if whole else [self.seed, self.epoch, window + 1]
        return np.random.default_rng(drawn).permutation(length)

    def _size(self) -> int:
        return max(1, min(self.block, self.window // _BLOCKS))

    def _blocks_a_window(self) -> int:
        return max(1, self.window // self._size())

    def _block_lengths(self) -> Rows:
        number = -(-self.rows // self._size())
        lengths = np.full(number, self._size(), np.int64)
        if number:
            lengths[-1] = self.rows - (number - 1) * self._size()
        return lengths

    def _blocks(self) -> Rows:
        number = -(-self.rows // self._size())
        if self.seed is None or self.rows <= self.window:
            return np.arange(number)
        return np.random.default_rng([self.seed, self.epoch, 0]).permutation(number)
