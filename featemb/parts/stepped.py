"""`SteppedRows`: integer rows with fp32 step sizes, as quantisation-aware training leaves them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from featemb.codecs.integers import unpack
from featemb.parts.base import Part


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
        step = self.step if self.step.shape[0] == 1 else self.step.index_select(0, flat)
        codes = self.codes.index_select(0, flat)
        if self.bits == 16:
            signed = codes.float()
        else:
            signed = unpack(codes, self.bits, self.width).float() - 2 ** (self.bits - 1)
        vectors = step * signed
        if self.offset.shape[0]:
            vectors = vectors + self.offset
        return vectors.view(*rows.shape, self.width)
