"""Binary search in sorted runs as plain tensor operations: the same in eager, export and ONNX."""

from __future__ import annotations

import torch
from torch import Tensor


def take(table: Tensor, places: Tensor) -> Tensor:
    """``table[places]`` of a vector, in the form that exporters keep as one operation."""
    return table.index_select(0, places.reshape(-1)).view(places.shape)


def first_not_below(
    keys: Tensor, wanted: Tensor, start: Tensor, stop: Tensor, longest: int
) -> Tensor:
    """Return the first position in ``[start, stop)`` whose key is not below a number, or ``stop``.

    Args:
        keys: ``[K]``, K >= 1, ascending within every run.
        wanted: numbers ``[...]``.
        start: first position of each number's run, int64, broadcastable.
        stop: position behind the run.
        longest: length of the longest run: it sets the number of steps.
    """
    low, high = start.expand(wanted.shape), stop.expand(wanted.shape)
    last = keys.shape[0] - 1
    for _ in range(int(longest).bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (take(keys, middle.clamp(max=last)) < wanted)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return low
