"""`SteppedRows`: integer rows with fp32 step sizes, as quantisation-aware training leaves them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from featemb.kernels import unpack
from featemb.parts.base import Part


def signed(codes: Tensor, bits: int, width: int) -> Tensor:
    """Unpack codes of `SteppedRows` to their signed integers, fp32 ``[N, width]``."""
    if bits == 16:
        return codes.float()
    numbers: Tensor = unpack(codes, bits, width).float() - 2 ** (bits - 1)
    return numbers


class SteppedRows(Part):
    """Rows ``step * (code - 2^(bits - 1)) + offset``; ``[...]`` rows give fp32 ``[..., width]``.

    Attributes:
        codes: uint8 ``[R, ceil(width * bits / 8)]``, the first number in the lowest bits; with 16
            bits int16 ``[R, width]`` that hold ``code - 2^15``.
        step: fp32 ``[R, 1]``, or ``[1, 1]`` for all rows.
        offset: fp32 ``[width]`` (one a column), ``[1]`` (one for all), or ``[0]`` for none.
        bits: 16, 8, 4 or 2.
        width: numbers a row.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "codes": "codes",
        "step": "scales",
        "offset": "scales",
    }
    codes: Tensor
    step: Tensor
    offset: Tensor
    bits: int
    width: int

    def forward(self, rows: Tensor) -> Tensor:
        """Gather and de-quantise rows."""
        flat = rows.reshape(-1)
        codes = self.codes.index_select(0, flat)
        vectors = self._steps(flat) * signed(codes, self.bits, self.width)
        if self.offset.shape[0]:
            vectors = vectors + self.offset
        return vectors.view(*rows.shape, self.width)

    def _steps(self, rows: Tensor) -> Tensor:
        return self.step if self.step.shape[0] == 1 else self.step.index_select(0, rows)


class GroupSteppedRows(SteppedRows):
    """`SteppedRows` with a step for each group of consecutive rows.

    Attributes:
        step: fp32 ``[G, 1]``.
        starts: first row of each group, ascending from 0.
    """

    starts: tuple[int, ...]

    def _steps(self, rows: Tensor) -> Tensor:
        return self.step.index_select(0, group_of(rows, self.starts))


def group_of(rows: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Number of the group that each row int64 ``[N]`` is in, for the groups' first rows."""
    return torch.bucketize(rows, torch.tensor(starts[1:], device=rows.device), right=True)
