"""How rows of integer codes are read: by torch's quantised kernels, or in plain tensor code.

A *pair* is the scale and the bias of some codes: ``x = scale q + bias``. A *fused* row is its
packed codes, then its pair, as bytes: the layout of the embedding kernels that torch's CPU build
brings along (``torch.ops.quantized``), and one or two cache lines a lookup. Pairs are fp32 behind
8-bit codes and fp16 behind 4- and 2-bit ones.

All ways give the same numbers, bit for bit: a scale has at most 16 significant bits and a code at
most 8, so their product is exact in fp32, and one rounding is left with or without fused
multiply-add. Plain tensor code serves other devices, builds without the kernels, and tracing.

FBGEMM's own inference kernels want the pair in front of the codes, rows of a multiple of 16 bytes
on CUDA, and use one CPU thread; on a CPU they are no faster than torch's, so they are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from featemb.ids import tracing

_KERNELS = {8: "byte", 4: "4bit", 2: "2bit"}
# One element a row: torch gathers elements of a vector several times faster than short rows.
_WORDS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}


def pair_dtype(bits: int) -> torch.dtype:
    """Return the dtype of scale and bias beside codes of so many bits."""
    return torch.float32 if bits == 8 else torch.float16


def pair_bytes(bits: int) -> int:
    """Return the bytes of a scale and a bias."""
    return 2 * pair_dtype(bits).itemsize


def code_bytes(width: int, bits: int) -> int:
    """Return the bytes of a row's packed codes."""
    return -(-width * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integers ``[R, C]`` below ``2^bits`` into uint8 ``[R, ceil(C * bits / 8)]``."""
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per_byte))
    groups = padded.view(codes.shape[0], -1, per_byte).int()
    shifts = torch.arange(per_byte, device=codes.device, dtype=torch.int32) * bits
    return (groups << shifts).sum(2).to(torch.uint8)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo `pack`: uint8 ``[R, ceil(width * bits / 8)]`` gives integers ``[R, width]``."""
    if bits == 8:
        return packed
    packed = (
        packed.int() if tracing() else packed
    )  # ONNX exporters mistake the type of a uint8 mask
    digits = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return torch.stack(digits, dim=2).flatten(1)[:, :width]


def gather_bytes(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]`` for uint8 ``[R, W]`` and int64 ``[N]``."""
    width = table.shape[1]
    plain = table.device.type != "cpu" or tracing() or not table.is_contiguous()
    if plain or width not in _WORDS or table.data_ptr() % width:
        return table.index_select(0, rows)
    found = table.view(-1).view(_WORDS[width]).index_select(0, rows)
    return found[:, None].view(torch.uint8)


def read_fused(table: Tensor, rows: Tensor, bits: int, width: int) -> Tensor:
    """Gather and de-quantise fused rows.

    Args:
        table: uint8 ``[R, code_bytes + pair_bytes]``.
        rows: int64 ``[N]``.
        bits: bits a code: 8, 4 or 2.
        width: numbers a row, C.

    Returns:
        fp32 ``[N, C]``.
    """
    kernel = _kernel(table, bits)
    if kernel is not None:
        return kernel(table, rows.contiguous(), torch.arange(rows.numel()))[:, :width]
    return read_fused_plainly(table, rows, bits, width)


def pool_fused(
    table: Tensor,
    rows: Tensor,
    offsets: Tensor,
    bits: int,
    width: int,
    weights: Tensor | None = None,
    include_last_offset: bool = False,
) -> Tensor | None:
    """Sum bags of fused rows by torch's kernel; None where it does not work.

    Args:
        table: uint8 ``[R, code_bytes + pair_bytes]``.
        rows: int64 ``[N]``, each below R.
        offsets: int64 ``[B]``, where each bag begins, from 0 on and never falling; ``[B + 1]`` with
            the last one, N.
        bits: bits a code: 8, 4 or 2.
        width: numbers a row, C.
        weights: fp32 ``[N]``.
        include_last_offset: whether offsets end with N.

    Returns:
        fp32 ``[B, C]``.
    """
    kernel: Callable[..., Tensor] | None = _kernel(table, bits)
    if kernel is None:
        return None
    how = {"per_sample_weights": weights, "include_last_offset": include_last_offset}
    return kernel(table, rows.contiguous(), offsets, **how)[:, :width]


def read_fused_plainly(table: Tensor, rows: Tensor, bits: int, width: int) -> Tensor:
    """`read_fused` in plain tensor code."""
    found = gather_bytes(table, rows)
    codes, pairs = found.tensor_split([code_bytes(width, bits)], dim=1)
    return _dequantise(codes, _pairs(pairs, bits), bits, width)


def dequantise(codes: Tensor, pairs: Tensor, bits: int, width: int) -> Tensor:
    """De-quantise packed codes.

    Args:
        codes: uint8 ``[N, code_bytes]``.
        pairs: scale and bias ``[N, 2]``, or ``[1, 2]`` for all rows.
        bits: bits a code: 8, 4 or 2.
        width: numbers a row, C.

    Returns:
        fp32 ``[N, C]``.
    """
    kernel = _kernel(codes, bits) if bits < 8 else None  # unpacking is what takes long
    if kernel is None:
        return _dequantise(codes, pairs.float(), bits, width)
    beside = pairs.view(torch.uint8).expand(codes.shape[0], -1)
    every = torch.arange(codes.shape[0])
    return kernel(torch.cat((codes, beside), 1), every, every)[:, :width]


def _dequantise(codes: Tensor, pairs: Tensor, bits: int, width: int) -> Tensor:
    scale, bias = pairs[:, :1], pairs[:, 1:]
    numbers = unpack(codes, bits, width).float()
    if tracing():
        return numbers.mul_(scale).add_(bias)
    return torch.addcmul(bias, numbers, scale)


def _pairs(stored: Tensor, bits: int) -> Tensor:
    """Return fp32 ``[N, 2]`` of pairs as bytes ``[N, pair_bytes]``."""
    if not tracing():
        # a copy even of a single row: a view as floats wants its bytes aligned
        held = stored.clone(memory_format=torch.contiguous_format)
        return held.view(pair_dtype(bits)).float()
    # not every exporter reads bytes as floats: put them together by arithmetic, which is exact
    half = stored.int().view(stored.shape[0], 2, -1)
    if bits == 8:
        low = half[..., 0] + (half[..., 1] << 8) + ((half[..., 2] & 127) << 16)
        exponent = ((half[..., 3] & 127) << 1) + (half[..., 2] >> 7)
        return _assembled(low, exponent, half[..., 3] >> 7, digits=23, lowest=-149, exponents=255)
    low, exponent = half[..., 0] + ((half[..., 1] & 3) << 8), (half[..., 1] >> 2) & 31
    return _assembled(low, exponent, half[..., 1] >> 7, digits=10, lowest=-24, exponents=31)


def _assembled(
    low: Tensor, exponent: Tensor, sign: Tensor, digits: int, lowest: int, exponents: int
) -> Tensor:
    """Return floats of their low bits, exponents and signs; ``2^lowest`` is the least of all."""
    steps = torch.tensor([2.0 ** (lowest + max(e, 1) - 1) for e in range(exponents)])
    step = steps.to(low.device)[exponent.long()]
    digit = torch.where(exponent > 0, low + (1 << digits), low).float()
    return digit * step * (1 - 2 * sign).float()


def _kernel(table: Tensor, bits: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return torch's kernel (fused rows, row numbers, offsets of bags) for a table, if it works."""
    if table.device.type != "cpu" or tracing() or not table.is_contiguous():
        return None
    return _working_kernel(bits)


@lru_cache
def _working_kernel(bits: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Try torch's kernel on a small table: builds differ in what they bring along."""
    table = (torch.arange(3 * (4 + pair_bytes(bits))) * 37 % 120).to(torch.uint8).view(3, -1)
    rows, width = torch.tensor([2, 0, 2, 1]), 32 // bits
    try:
        kernel = getattr(torch.ops.quantized, f"embedding_bag_{_KERNELS[bits]}_rowwise_offsets")
        found = kernel(table, rows, torch.arange(4))
    except (AttributeError, RuntimeError):  # absent, or not made for this machine
        return None
    good = torch.equal(found, read_fused_plainly(table, rows, bits, width))
    return kernel if good else None
