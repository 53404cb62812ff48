"""Stochastic rounding: a number becomes one of its two neighbours, and its mean is itself.

Rounding to the nearest loses every update that is smaller than half a step; with probabilities
proportional to the distances such updates add up in the mean (Gupta et al., ICML 2015). The draws
are hashes of (key, count, row, column): independent for every element and write, the same on every
device, and resumable, since key and count are all their state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featemb.hashing import GOLDEN, mix64

_FRACTION = 24
_MANTISSA_LEFT = 13  # mantissa bits that fp32 has and fp16 has not
_HALF_MAX = 65504.0
_HALF_NORMAL = 2.0**-14
_HALF_SMALLEST = 2.0**-24


def uniforms(draws: Tensor, rows: Tensor, width: int) -> Tensor:
    """Return numbers uniform in [0, 1), multiples of ``2^-24``.

    Args:
        draws: int64 ``[2]``: a key, and the count of draws so far.
        rows: distinct rows int64 ``[U]``.
        width: C.

    Returns:
        float32 ``[U, C]``.
    """
    pairs = (width + 1) // 2  # a 64-bit hash serves two elements
    start = mix64(mix64(draws[0]) + draws[1] * GOLDEN)
    place = rows[:, None] * pairs + torch.arange(pairs, device=rows.device)
    halves = mix64(start + place * GOLDEN).view(torch.int32)  # low, then high half of each hash
    return (halves & ((1 << _FRACTION) - 1))[:, :width].float().mul_(2.0**-_FRACTION)


def round_randomly(x: Tensor, uniform: Tensor) -> Tensor:
    """Round to an integer: up with the probability of the fraction. Integers stay as they are."""
    floor = x.floor()
    # fraction - uniform is in (-1, 1): its ceiling is 1 where it is above 0
    return floor.add_((x - floor).sub_(uniform).ceil_())


def to_bfloat16(x: Tensor, uniform: Tensor) -> Tensor:
    """Round fp32 to one of its two bfloat16 neighbours; beyond the range, to the largest number."""
    limit = torch.finfo(torch.bfloat16).max
    bits = x.float().view(torch.int32)
    # the pattern of a magnitude grows with it: a carry out of the lower half is the next number
    carried = bits + (uniform * 2.0**16).int()
    return (carried & -(1 << 16)).view(torch.float32).clamp(-limit, limit).bfloat16()


def to_float16(x: Tensor, uniform: Tensor) -> Tensor:
    """Round fp32 to one of its two fp16 neighbours; beyond the range, to the largest number."""
    x = x.float()
    carried = x.view(torch.int32) + (uniform * 2.0**_MANTISSA_LEFT).int()
    normal = (carried & -(1 << _MANTISSA_LEFT)).view(torch.float32)
    subnormal = round_randomly(x / _HALF_SMALLEST, uniform) * _HALF_SMALLEST
    rounded = torch.where(x.abs() < _HALF_NORMAL, subnormal, normal)
    return rounded.clamp(-_HALF_MAX, _HALF_MAX).half()
