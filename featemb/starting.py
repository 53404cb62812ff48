"""Tables without rows, whose rows are made later: each process of several makes its own alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 22  # numbers that are drawn at once
_later: ContextVar[bool] = ContextVar("rows_later", default=False)


@dataclass(frozen=True)
class Start:
    """How the rows of a table start: the same numbers however many are kept.

    Attributes:
        seed: of their generator.
        init: half the range.
        center: their mean.
        shift: added to the rows from ``first`` on.
        first: see ``shift``.
    """

    seed: int
    init: float
    center: float
    shift: float = 0.0
    first: int = 0

    def blocks(self, rows: int, width: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the rows of a table ``[rows, width]`` in blocks, each with its first row."""
        generator = torch.Generator().manual_seed(self.seed)
        step = max(1, _BLOCK // width)
        for row in range(0, rows, step):
            block = torch.empty(min(step, rows - row), width)
            block.uniform_(self.center - self.init, self.center + self.init, generator=generator)
            if self.shift:
                block[max(0, self.first - row) :] += self.shift
            yield row, block


@contextmanager
def rows_later() -> Iterator[None]:
    """Make tables on the meta device inside, which remember how their rows start.

    All other tensors are made as ever. For layers that `featemb.torchrec.shard` takes.
    """
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def are_rows_later() -> bool:
    """Whether tables are to be made without rows."""
    return _later.get()
