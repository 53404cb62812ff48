"""Byte budgets: from a size wanted to a method's knob, exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import torch

from featemb.errors import BudgetError, ConfigError, RunError
from featemb.layer import BuildContext
from featemb.memory import module_bytes
from featemb.schema import Schema
from featemb.spec import Spec, write

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_size(name: str, value: int) -> None:
    """Refuse a value that is not a positive integer.

    Raises:
        ConfigError: names the argument and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}")


def parse_bytes(size: int | str) -> int:
    """Read a number of bytes: ``2_000_000``, ``"2MB"``, ``"1.5 GB"``, ``"64KiB"``.

    Raises:
        ConfigError: the text is not a size.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*((?:\d+_)*\d*\.?\d+)\s*([kKMGT]?)(i?)B?\s*", size)
        if match is None:
            raise ConfigError(f"cannot read the budget {size!r}; write bytes or such as '2MB'")
        number, unit, binary = match.groups()
        units = _BINARY if binary else _UNITS
        size = int(float(number) * units[unit.upper()])
    check_size("budget", size)
    return size


def serving_bytes(spec: Spec, schema: Schema, dim: int, seed: int = 0) -> int:
    """Serving bytes of a spec, by building it on the meta device: no formula that could drift."""
    layer = spec.method.build(context_of(spec, schema, dim, seed, torch.device("meta")))
    return sum(module_bytes(layer.freeze()).values())


def context_of(
    spec: Spec, schema: Schema, dim: int, seed: int, device: torch.device
) -> BuildContext:
    """Return what a spec's method is built from."""
    context = BuildContext(schema, dim, seed, device)
    return context if spec.codec is None else replace(context, codec=spec.codec)


def solve(spec: Spec, schema: Schema, dim: int, limit: int, seed: int = 0) -> Spec:
    """Return the spec with its method's knob as large as a limit of serving bytes allows.

    Raises:
        BudgetError: the smallest configuration is above the limit.
        ConfigError: the knob is set by hand already.
    """
    knob = spec.method.knob

    def with_knob(value: int) -> Spec:
        return spec if knob is None else Spec(replace(spec.method, **{knob: value}), spec.codec)

    def size(value: int) -> int:
        return serving_bytes(with_knob(value), schema, dim, seed)

    if knob is not None and getattr(spec.method, knob) is not None:
        raise ConfigError(
            f"{write(spec.method)} sets {knob!r} by hand; give that or a ratio or budget, not both"
        )
    if knob is not None and spec.method.knob_in_bytes:
        if (used := size(limit)) > limit:
            raise RunError(f"{with_knob(limit)} takes {used:,} bytes, more than its limit")
        return with_knob(limit)
    smallest = spec.method.smallest_knob(schema)
    floor = size(smallest)
    if floor > limit:
        raise BudgetError(
            f"{spec} at width {dim} needs at least {floor:,} bytes, the budget is {limit:,}", floor
        )
    return with_knob(_largest(size, smallest, limit)) if knob else spec


def _largest(size: Callable[[int], int], low: int, limit: int) -> int:
    """Largest knob whose size is within the limit; sizes grow with the knob, or stop growing."""
    high = 2 * low
    previous = size(low)
    while (current := size(high)) <= limit:
        if current == previous:
            return low  # twice the knob and not one byte more: the method is at its full size
        low, high, previous = high, 2 * high, current
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low
