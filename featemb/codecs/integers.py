"""int8, int4 and int2 rows: uniform codes between the extremes of a row, a block or the table.

``x ~ bias + scale * q`` with ``q`` in ``0 .. 2^bits - 1`` (asymmetric min-max quantisation). The
bias is rounded down and the scale up, so that the codes span all numbers that share them: the
absolute error is at most half a scale.

Which rows share a scale and a bias (a pair; see `featemb.kernels`) is the setting ``scales``:

- ``row``: each has its own, in 8 more bytes (int8: fp32) or 4 (int4 and int2: fp16). An outlier
  spoils its own row only, and lookups are fastest: a row lies in one piece of memory.
- ``block``: ``block`` rows in succession share one. Next to no bytes, and an outlier spoils its
  block. Rows in the order of their frequency, as most encoders number ids, are alike in a block.
- ``table``: one for all. One outlier takes the levels of every row.
- ``auto``: ``row`` where the codes of a row take more bytes than a pair, else ``block``: known from
  the width alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featemb.codecs.base import Codec, check_finite
from featemb.config import register
from featemb.errors import DataError
from featemb.ids import tracing
from featemb.kernels import (
    code_bytes,
    dequantise,
    gather_bytes,
    pack,
    pair_bytes,
    pair_dtype,
    read_fused,
)
from featemb.parts.base import Part

_CHUNK_ROWS = 1 << 18
_UNDERFLOW = 2.0**-140
_SCALES = ("auto", "row", "block", "table")


class IntRows(Part):
    """Integer rows with a scale and a bias each; ``[...]`` rows give fp32 ``[..., width]``.

    Attributes:
        rows: uint8 ``[R, B]``: packed codes, the first number in the lowest bits, then the pair.
        bits: bits a number: 8, 4 or 2.
        width: numbers a row, C.
    """

    rows: Tensor
    bits: int
    width: int

    @property
    def memory_columns(self) -> dict[str, dict[str, int]]:
        """Codes and scales share a tensor: how many of its columns are whose."""
        codes = code_bytes(self.width, self.bits)
        return {"rows": {"codes": codes, "scales": pair_bytes(self.bits)}}

    def forward(self, rows: Tensor) -> Tensor:
        """Gather and de-quantise rows."""
        found = read_fused(self.rows, rows.reshape(-1), self.bits, self.width)
        return found.view(*rows.shape, self.width)

    def extra_repr(self) -> str:
        """Shape and format, for printing."""
        return f"{self.rows.shape[0]} x {self.width}, int{self.bits}, a scale a row"


class BlockIntRows(Part):
    """Integer rows that share scales; ``[...]`` rows give fp32 ``[..., width]``.

    Attributes:
        codes: uint8 ``[R, ceil(width * bits / 8)]``, the first number in the lowest bits.
        scales: ``[ceil(R / block), 2]``, the scale and the bias of every block.
        block: rows in succession that share them.
        bits: bits a number: 8, 4 or 2.
        width: numbers a row, C.
    """

    memory_parts: ClassVar[dict[str, str]] = {"codes": "codes", "scales": "scales"}
    codes: Tensor
    scales: Tensor
    block: int
    bits: int
    width: int

    def forward(self, rows: Tensor) -> Tensor:
        """Gather and de-quantise rows."""
        flat = rows.reshape(-1)
        pairs = self.scales
        if pairs.shape[0] > 1:
            even = not self.block & (self.block - 1)  # a shift is several times faster
            own = flat >> (self.block.bit_length() - 1) if even else flat // self.block
            pairs = self._pairs(own)
        found = dequantise(gather_bytes(self.codes, flat), pairs, self.bits, self.width)
        return found.view(*rows.shape, self.width)

    def _pairs(self, blocks: Tensor) -> Tensor:
        if tracing():
            return self.scales.index_select(0, blocks)
        both = torch.int64 if self.scales.dtype == torch.float32 else torch.int32
        found = self.scales.view(both).view(-1).index_select(0, blocks)
        return found[:, None].view(self.scales.dtype)

    def extra_repr(self) -> str:
        """Shape and format, for printing."""
        rows = "all" if self.scales.shape[0] == 1 else self.block
        return f"{self.codes.shape[0]} x {self.width}, int{self.bits}, a scale for {rows} rows"


@dataclass(frozen=True, kw_only=True)
class _Integers(Codec):
    """What int8, int4 and int2 share.

    Attributes:
        scales: which rows share a scale: "row", "block", "table", or "auto" (see the module).
        block: rows of a block.
    """

    bits: ClassVar[int]

    scales: str = "auto"
    block: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        self.require("scales", f"one of {', '.join(_SCALES)}", self.scales in _SCALES)
        self.require("block", "at least 1", self.block >= 1)

    def sharing(self, width: int) -> str:
        """Return what "auto" is for rows of a width: "row" or "block"; otherwise the setting."""
        if self.scales != "auto":
            return self.scales
        return "row" if code_bytes(width, self.bits) > pair_bytes(self.bits) else "block"

    def stored_bytes(self, rows: int, width: int) -> int:
        """Return the bytes of a table ``[rows, width]``, for searches over many sizes."""
        shared = self._shared(rows, width)
        return rows * code_bytes(width, self.bits) + -(-rows // shared) * pair_bytes(self.bits)

    def encode(self, table: Tensor) -> Part:
        """Quantise a table ``[R, C]``."""
        check_finite(table)
        table = table.detach()
        num_rows, width = table.shape
        pairs, each = self._pairs(table), code_bytes(width, self.bits)
        fused = self.sharing(width) == "row"
        stored = torch.empty(
            num_rows,
            each + pair_bytes(self.bits) * fused,
            dtype=torch.uint8,
            device=table.device,
        )
        for chunk in _chunks(table):
            rows = torch.arange(chunk.start, chunk.stop, device=table.device)
            own = pairs[rows // self._shared(*table.shape)]
            scale, bias = own.to(table).tensor_split(2, dim=1)
            number = (table[chunk] - bias) / torch.where(scale > 0, scale, 1.0)
            stored[chunk, :each] = pack(number.round().clamp(0, 2**self.bits - 1), self.bits)
            if fused:
                stored[chunk, each:] = own.view(torch.uint8)
        if fused:
            return IntRows(rows=stored, bits=self.bits, width=width)
        return BlockIntRows(
            codes=stored,
            scales=pairs,
            block=self._shared(*table.shape),
            bits=self.bits,
            width=width,
        )

    def error_bound(self, table: Tensor) -> Tensor:
        """Half a scale, and the rounding of the fp32 arithmetic on top."""
        pairs = self._pairs(table.detach()).float()
        rows = torch.arange(table.shape[0], device=table.device) // self._shared(*table.shape)
        scale, bias = pairs[rows, :1], pairs[rows, 1:]
        reach = bias.abs() + scale * 2**self.bits
        bound: Tensor = scale * 0.5 + reach * 2**-21 + _UNDERFLOW
        return bound

    def _shared(self, rows: int, width: int) -> int:
        """Return how many rows in succession share a pair."""
        return max(1, {"row": 1, "block": self.block, "table": rows}[self.sharing(width)])

    def _pairs(self, table: Tensor) -> Tensor:
        """Return the scale and the bias of every row, block or table, ``[S, 2]``."""
        shared = self._shared(*table.shape)
        low, high = _extremes(table, shared)
        top = 2**self.bits - 1
        if self.bits == 8:
            bias = _rounded_down(low)
            scale = _short_above((high.double() - bias.double()) / top)
        else:
            bias = _half_below(low)
            scale = -_half_below(-(high - bias.float()) / top)
        pairs = torch.stack((scale, bias), dim=1).to(pair_dtype(self.bits))
        if not table.is_meta:
            scale, bias = pairs.float().unbind(1)
            good = torch.isfinite(scale * top) & torch.isfinite(bias)
            if not good.all():
                self._refuse(int((~good).nonzero()[0]), shared, low, high)
        return pairs

    def _refuse(self, place: int, shared: int, low: Tensor, high: Tensor) -> None:
        last = place * shared + shared - 1
        where = f"row {place}" if shared == 1 else f"the block of rows {place * shared} to {last}"
        dtype = pair_dtype(self.bits)
        raise DataError(
            f"{where} spans [{low[place]:.4g}, {high[place]:.4g}], beyond the scale and bias of "
            f"{self.name} (largest {torch.finfo(dtype).max:.5g}); use fp32 or bf16 rows"
        )


def _chunks(table: Tensor) -> Iterator[slice]:
    rows = 0 if table.is_meta else table.shape[0]
    for start in range(0, rows, _CHUNK_ROWS):
        yield slice(start, min(start + _CHUNK_ROWS, rows))


def _extremes(table: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest number ``[S]`` of every ``shared`` rows."""
    rows, width = table.shape
    whole = rows // shared * shared
    parts = [table[:whole].reshape(-1, shared * width)]
    if whole < rows:
        parts.append(table[whole:].reshape(1, -1))
    return torch.cat([one.amin(1) for one in parts]), torch.cat([one.amax(1) for one in parts])


def _rounded_down(x: Tensor) -> Tensor:
    """Largest fp32 number that is not above x."""
    single = x.float()
    lower = torch.nextafter(single, torch.full_like(single, -torch.inf))
    return torch.where(single > x, lower, single)


def _short_above(x: Tensor) -> Tensor:
    """Least fp32 number of 16 significant bits that is not below x >= 0, fp64."""
    single = x.float()
    higher = torch.nextafter(single, torch.full_like(single, torch.inf))
    above = torch.where(single < x, higher, single)
    return ((above.view(torch.int32) + 255) & ~255).view(torch.float32)


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
    """8-bit codes: C + 8 bytes a row with scales of its own, else C and 8 a block.

    The pair is fp32 since the kernel that uses all threads wants it so.
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@register
@dataclass(frozen=True, kw_only=True)
class Int4(_Integers):
    """4-bit codes: C / 2 + 4 bytes a row with scales of its own, else C / 2 and 4 a block."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@register
@dataclass(frozen=True, kw_only=True)
class Int2(_Integers):
    """2-bit codes: C / 4 + 4 bytes a row with scales of its own, else C / 4 and 4 a block."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
