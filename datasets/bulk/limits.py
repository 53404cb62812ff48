"""How many processes, and how much each may hold, so that a limit of memory is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass

from featemb.errors import DataError

DEFAULT = 4 << 30
LEAST = 1 << 30
PIECE_BYTES = 1 << 24
_PARENT = 900 << 20  # of which 300 MB are code, and the split of 45 million rows half
_PROCESS = 360 << 20  # code, and a piece being parsed
_ROOM = 200 << 20  # for a merge
_MOST_ROOM = 1 << 30
_WORD = 90  # bytes that merging a word takes beside three times its own


@dataclass(frozen=True)
class Limits:
    """Limits of an encoding.

    Attributes:
        workers: number of processes.
        room: bytes that a merge may take in each.
    """

    workers: int
    room: int

    def words(self, number: int, size: int) -> int:
        """Most words to merge at once, of a column whose ``number`` words have ``size`` bytes."""
        return max(1, self.room // (_WORD + 3 * size // max(number, 1)))


def limits(workers: int | None, memory: int) -> Limits:
    """Divide a limit of memory among processes.

    Args:
        workers: number of processes wished for; None is the number of processors. There are fewer
            where the memory does not suffice.
        memory: bytes that all processes together may hold (resident).

    Raises:
        DataError: workers is below 1, or memory below 1 GiB.
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    if memory < LEAST:
        raise DataError(f"memory must be at least {LEAST} bytes (1 GiB), got {memory}")
    wished = workers if workers is not None else _processors()
    left = memory - _PARENT
    made = max(1, min(wished, left // (_PROCESS + _ROOM)))
    room = left if made == 1 else left // made - _PROCESS
    return Limits(made, min(_MOST_ROOM, max(room, _ROOM // 2)))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
