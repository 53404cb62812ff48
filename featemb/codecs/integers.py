"""int8, int4 and int2 rows: uniform codes between a row's (or the table's) extremes.

``x ~ bias + scale * q`` with ``q`` in ``0 .. 2^bits - 1`` (asymmetric min-max quantisation). Scale
and bias are fp16 and one of each belongs to every row, 4 bytes a row, as in FBGEMM's inference
tables; where the codes of a row would take no more than those 4 bytes, one fp16 scale and bias
serve the whole table instead. The bias is rounded down and the scale up, so that the codes span
the row: the absolute error is at most half a scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featemb.codecs.base import Codec, check_finite
from featemb.config import register
from featemb.errors import DataError
from featemb.parts.base import Part

_SCALE_BYTES = 4
_CHUNK_ROWS = 1 << 18
_HALF_MAX = 65504.0


class IntRows(Part):
    """Packed integer rows; ``[...]`` rows give fp32 ``[..., width]``.

    Attributes:
        codes: uint8 ``[R, ceil(width * bits / 8)]``, the first number in the lowest bits.
        scale: fp16 ``[R]``, or ``[1]`` for the whole table.
        bias: fp16, as ``scale``.
        bits: bits a number: 8, 4 or 2.
        width: numbers a row, C.
    """

    memory_parts: ClassVar[dict[str, str]] = {"codes": "codes", "scale": "scales", "bias": "scales"}
    codes: Tensor
    scale: Tensor
    bias: Tensor
    bits: int
    width: int

    def forward(self, rows: Tensor) -> Tensor:
        """Gather and de-quantise rows."""
        flat = rows.reshape(-1)
        scale, bias = self.scale, self.bias
        if scale.shape[0] == self.codes.shape[0]:
            scale, bias = scale.index_select(0, flat), bias.index_select(0, flat)
        codes = unpack(self.codes.index_select(0, flat), self.bits, self.width)
        vectors = codes.float() * scale.float()[:, None] + bias.float()[:, None]
        return vectors.view(*rows.shape, self.width)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers ``[R, C]`` below ``2^bits`` into uint8 ``[R, ceil(C * bits / 8)]``."""
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_byte))
    groups = padded.view(codes.shape[0], -1, per_byte).int()
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * bits
    return (groups << shifts).sum(2).to(torch.uint8)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo `pack`: uint8 ``[R, ceil(width * bits / 8)]`` gives uint8 ``[R, width]``."""
    if bits == 8:
        return packed
    digits = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(digits, dim=2).flatten(1)[:, :width]


@dataclass(frozen=True, kw_only=True)
class _Integers(Codec):
    """What int8, int4 and int2 share."""

    bits: ClassVar[int]

    def encode(self, table: Tensor) -> IntRows:
        """Quantise a table ``[R, C]``."""
        check_finite(table)
        table = table.detach()
        num_rows, width = table.shape
        code_bytes = math.ceil(width * self.bits / 8)
        scale, bias = self._scale_and_bias(table, per_row=code_bytes > _SCALE_BYTES)
        codes = torch.empty(num_rows, code_bytes, dtype=torch.uint8, device=table.device)
        for start in range(0, 0 if table.is_meta else num_rows, _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, num_rows))
            each = chunk if scale.shape[0] == num_rows else slice(None)
            step = scale[each].float()[:, None].clamp(min=2.0**-24)
            number = (table[chunk] - bias[each].float()[:, None]) / step
            codes[chunk] = pack(number.round().clamp(0, 2**self.bits - 1), self.bits)
        return IntRows(codes=codes, scale=scale, bias=bias, bits=self.bits, width=width)

    def error_bound(self, table: Tensor) -> Tensor:
        """Half a scale, and the rounding of the fp32 arithmetic on top."""
        rows = self.encode(table)
        scale, bias = rows.scale.float()[:, None], rows.bias.float()[:, None]
        reach = bias.abs() + scale * 2**self.bits
        bound: Tensor = scale * 0.5 + reach * 2**-21
        return bound

    def _scale_and_bias(self, table: Tensor, per_row: bool) -> tuple[Tensor, Tensor]:
        rows = table if per_row else table.reshape(1, -1)
        low, high = rows.amin(1), rows.amax(1)
        bias = _half_below(low)
        scale = -_half_below(-(high - bias.float()) / (2**self.bits - 1))
        if not table.is_meta and not (torch.isfinite(scale) & torch.isfinite(bias)).all():
            row = int((~(torch.isfinite(scale) & torch.isfinite(bias))).nonzero()[0])
            where = f"row {row}" if per_row else "the table"
            raise DataError(
                f"{where} spans [{low[row]:.4g}, {high[row]:.4g}], beyond the fp16 scale and "
                f"bias of {self.name} (largest {_HALF_MAX:g}); use fp32 or bf16 rows"
            )
        return scale, bias


def _half_below(x: Tensor) -> Tensor:
    """Largest fp16 number that is not above x (infinite where x is out of range)."""
    half = x.half()
    too_high = half.float() > x
    # one ulp down, or two near a power of two: exact enough to stay below x
    step = torch.maximum(half.float().abs() * 2**-10, torch.tensor(2.0**-24, device=x.device))
    lower = (half.float() - step).half()
    return torch.where(too_high, lower, half)


@register
@dataclass(frozen=True, kw_only=True)
class Int8(_Integers):
    """8-bit codes: a row of C numbers takes C + 4 bytes (C bytes where C <= 4)."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@register
@dataclass(frozen=True, kw_only=True)
class Int4(_Integers):
    """4-bit codes: a row of C numbers takes C / 2 + 4 bytes (C / 2 where C <= 8)."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@register
@dataclass(frozen=True, kw_only=True)
class Int2(_Integers):
    """2-bit codes: a row of C numbers takes C / 4 + 4 bytes (C / 4 where C <= 16)."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
