"""fp32, fp16, bf16 and fp8 rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from featemb.codecs.base import Codec, check_finite
from featemb.config import register
from featemb.errors import DataError
from featemb.kernels import gather_bytes
from featemb.parts.base import Part
from featemb.rows import gather_rows

_CHUNK_ROWS = 1 << 18


class FloatRows(Part):
    """Rows in a floating-point format; ``[...]`` rows give fp32 ``[..., C]``.

    Attributes:
        weight: ``[R, C]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "rows"}
    weight: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows as fp32 (fp64 stays fp64)."""
        vectors = gather_rows(self.weight, rows.reshape(-1))
        if vectors.dtype in (torch.float16, torch.bfloat16):
            vectors = vectors.float()
        return vectors.view(*rows.shape, self.weight.shape[1])


def _check_range(rounded: Tensor, limit: str) -> None:
    if not rounded.is_meta and not torch.isfinite(rounded).all():
        row = int((~torch.isfinite(rounded).all(1)).nonzero()[0])
        raise DataError(f"row {row} exceeds the range of {limit}")


@register
@dataclass(frozen=True, kw_only=True)
class Fp32(Codec):
    """Rows as trained: 4 bytes a number, exact."""

    name: ClassVar[str] = "fp32"

    def encode(self, table: Tensor) -> Part:
        """Copy the table."""
        check_finite(table)
        return FloatRows(weight=table.detach().clone())

    def stored_bytes(self, rows: int, width: int) -> int:
        """Return 4 bytes a number."""
        return 4 * rows * width

    def error_bound(self, table: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros(1)


@register
@dataclass(frozen=True, kw_only=True)
class Fp16(Codec):
    """IEEE half precision: 2 bytes a number; relative error <= 2^-11 in the normal range."""

    name: ClassVar[str] = "fp16"

    def encode(self, table: Tensor) -> Part:
        """Round every number to the nearest half."""
        check_finite(table)
        half = table.detach().half()
        _check_range(half, "fp16 (65504); use bf16 or fp32")
        return FloatRows(weight=half)

    def stored_bytes(self, rows: int, width: int) -> int:
        """Return 2 bytes a number."""
        return 2 * rows * width

    def error_bound(self, table: Tensor) -> Tensor:
        """``|x| 2^-11 + 2^-25``, the second term for subnormal numbers."""
        return table.abs() * 2**-11 + 2**-25


@register
@dataclass(frozen=True, kw_only=True)
class Bf16(Codec):
    """bfloat16: 2 bytes a number; relative error <= 2^-8, the range of fp32."""

    name: ClassVar[str] = "bf16"

    def encode(self, table: Tensor) -> Part:
        """Round every number to the nearest bfloat16."""
        check_finite(table)
        brain = table.detach().bfloat16()
        _check_range(brain, "bf16 (3.39e38); use fp32")
        return FloatRows(weight=brain)

    def stored_bytes(self, rows: int, width: int) -> int:
        """Return 2 bytes a number."""
        return 2 * rows * width

    def error_bound(self, table: Tensor) -> Tensor:
        """``|x| 2^-8 + 2^-133``, the second term for subnormal numbers."""
        return table.abs() * 2**-8 + 2**-133


class _Float8(NamedTuple):
    """An 8-bit format: dtype, largest number, digits behind the point, lowest exponent."""

    dtype: torch.dtype
    largest: float
    digits: int
    lowest: int


_FLOAT8 = {
    "e4m3": _Float8(torch.float8_e4m3fn, 448.0, 3, -6),
    "e5m2": _Float8(torch.float8_e5m2, 57344.0, 2, -14),
}
_PATTERNS = torch.arange(256, dtype=torch.uint8)
# the 256 numbers of each format by their bits
_NUMBERS = {
    name: tuple(_PATTERNS.view(form.dtype).float().tolist()) for name, form in _FLOAT8.items()
}
_LEAST_SCALE = 2.0**-126


class Float8Rows(Part):
    """Rows of 8-bit floats times one scale; ``[...]`` rows give fp32 ``[..., C]``.

    Lookups read a list of the 256 numbers that there are: faster than torch's conversion, and
    exporters need no 8-bit floats.

    Attributes:
        codes: uint8 ``[R, C]``, the bits of the floats.
        scale: fp32 ``[1]``.
        form: "e4m3" or "e5m2".
    """

    memory_parts: ClassVar[dict[str, str]] = {"codes": "codes", "scale": "scales"}
    codes: Tensor
    scale: Tensor
    form: str

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows as fp32."""
        codes = gather_bytes(self.codes, rows.reshape(-1)).reshape(-1)
        numbers = torch.tensor(_NUMBERS[self.form], device=codes.device) * self.scale
        found = numbers.index_select(0, codes.int())
        return found.view(*rows.shape, self.codes.shape[1])

    def extra_repr(self) -> str:
        """Shape and format, for printing."""
        return f"{self.codes.shape[0]} x {self.codes.shape[1]}, {self.form}, a scale for all rows"


@register
@dataclass(frozen=True, kw_only=True)
class Fp8(Codec):
    """8-bit floats times one fp32 scale: 1 byte a number, and 4.

    Micikevicius et al., "FP8 formats for deep learning", 2022 (2209.05433). The largest absolute
    number of the table becomes the largest of the format: e4m3 has neither infinity nor numbers
    below 2^-9, so a table of small numbers would vanish without a scale. A scale a row would add
    little: the exponent of a number is its own. Relative error <= 2^-4 (e4m3) down to a 28,672nd of
    the table's largest number, or <= 2^-3 (e5m2) down to a 940-millionth; below that the absolute
    error is that of the least such number. int8 is closer for numbers of one size.

    Attributes:
        form: "e4m3" (4 bits of exponent, 3 behind the point) or "e5m2" (5, 2).
    """

    name: ClassVar[str] = "fp8"

    form: str = "e4m3"

    def __post_init__(self) -> None:
        """Check the format."""
        super().__post_init__()
        self.require("form", f"one of {', '.join(_FLOAT8)}", self.form in _FLOAT8)

    def encode(self, table: Tensor) -> Part:
        """Scale, and round every number to the nearest."""
        check_finite(table)
        table, form = table.detach(), _FLOAT8[self.form]
        _check_range(table.float(), "fp8 (3.39e38)")
        scale = self._scale(table)
        rounded = [
            (chunk / scale).clamp(-form.largest, form.largest).float().to(form.dtype)
            for chunk in torch.split(table, _CHUNK_ROWS)
        ]
        return Float8Rows(codes=torch.cat(rounded).view(torch.uint8), scale=scale, form=self.form)

    def error_bound(self, table: Tensor) -> Tensor:
        """Half a unit in the last place of the scaled number, and the rounding of fp32 on top."""
        form = _FLOAT8[self.form]
        least = self._scale(table.detach()) * 2.0 ** (form.lowest - form.digits - 1)
        half = torch.maximum(table.abs() * 2.0 ** -(form.digits + 1), least)
        return half * (1 + 2**-16) + 2**-149

    def _scale(self, table: Tensor) -> Tensor:
        """Return fp32 ``[1]``."""
        if not table.numel():
            return torch.ones(1, device=table.device)
        low, high = table.aminmax()
        largest = _FLOAT8[self.form].largest
        most = torch.finfo(torch.float32).max / largest * (1 - 2**-20)
        return (torch.maximum(-low, high).float()[None] / largest).clamp(_LEAST_SCALE, most)
