"""fp32, fp16 and bf16 rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featemb.codecs.base import Codec, check_finite
from featemb.config import register
from featemb.errors import DataError
from featemb.parts.base import Part
from featemb.rows import gather_rows


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

    def error_bound(self, table: Tensor) -> Tensor:
        """``|x| 2^-8 + 2^-133``, the second term for subnormal numbers."""
        return table.abs() * 2**-8 + 2**-133
