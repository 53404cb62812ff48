"""Memory of tables that are read at random: in huge pages, where the system has them.

Every row of a large table lies in a page of its own, and a processor remembers where some thousand
pages are. With pages of 2 MiB instead of 4 KiB it remembers all of them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_PAGE = 1 << 21
_LEAST_BYTES = 4 * _PAGE


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor on the CPU; a large one asks for huge pages.

    The kernel gives them where it has them (Linux, unless they are switched off). The most that it
    takes besides the tensor's bytes is the rest of the last page.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, size + _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the memory for as long as it lives
    start = -flat.data_ptr() % _PAGE
    return flat[start : start + size].view(dtype).view(shape)
