"""Seeded 64-bit hashes as plain integer tensor operations.

The same operations run on CPU, on GPU, in torch.export and in ONNX, with the same result. The mixer
is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, variant 13 by Stafford).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """Two's complement of an unsigned 64-bit number: tensors are int64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)  # the odd increment of SplitMix64's counter


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's ``>>`` copies the sign, so the copies are masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Mix int64 numbers into int64 hashes, a bijection; elementwise, any shape."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift_right(x, 31)


def bucket(x: Tensor, salt: Tensor, size: Tensor | int) -> Tensor:
    """Hash int64 keys with a salt into ``0 <= bucket < size``; the arguments broadcast."""
    return (mix64(x + salt) & ((1 << 63) - 1)) % size


def mix64_int(x: int) -> int:
    """`mix64` of one Python integer, unsigned."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & _MASK
    return x ^ (x >> 31)


def salts(seed: Tensor, count: int) -> Tensor:
    """Return ``count`` salts int64 ``[count]`` of a seed (int64 scalar): hashes of a counter."""
    start = mix64(seed + GOLDEN)
    return mix64(start + torch.arange(1, count + 1, device=seed.device))
