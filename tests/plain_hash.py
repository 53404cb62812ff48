"""The hash on Python's integers, one number at a time: what the tensor code must agree with."""

from __future__ import annotations

MASK = (1 << 64) - 1


def plain_mix(x: int) -> int:
    """SplitMix64's finaliser on unsigned integers."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def plain_salts(seed: int, count: int) -> list[int]:
    start = plain_mix(seed + 0x9E3779B97F4A7C15)
    return [plain_mix(start + i + 1) for i in range(count)]


def plain_bucket(value: int, salt: int, size: int) -> int:
    return (plain_mix(value + salt) & (MASK >> 1)) % size
