"""Byte budgets: from a size wanted to a method's knob, exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from featemb.errors import BudgetError, ConfigError
from featemb.grammar import write
from featemb.layer import BuildContext, FeatureEmbedding
from featemb.memory import module_bytes
from featemb.schema import Schema
from featemb.spec import Spec

_RATIO_UNBOUNDED = 100  # of a composition whose full size is not known
_HALVINGS = 5
_FLAT_DOUBLINGS = 3
_META = torch.device("meta")
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


def build_spec(
    spec: Spec, schema: Schema, dim: int, seed: int = 0, device: torch.device = _META
) -> FeatureEmbedding:
    """Make the layer of a spec as it stands.

    Raises:
        ConfigError: the rows of the first method cannot be stored by the second one.
    """
    context = BuildContext(schema, dim, seed, device, inner=spec.inner)
    if spec.codec is not None:
        context = replace(context, codec=spec.codec)
    layer = spec.method.build(context)
    if spec.inner and not layer.stored():
        raise ConfigError(
            f"{spec}: {spec.method.name} makes its rows itself; another method can only store "
            "rows of BuildContext.rows"
        )
    if not all(one.smooth for one in layer.stored()):
        layer.smooth = False  # type: ignore[misc]  # hides the default
    return layer


def serving_bytes(spec: Spec, schema: Schema, dim: int, seed: int = 0) -> int:
    """Serving bytes of a spec, by building it on the meta device: no formula that could drift."""
    return _bytes(build_spec(spec, schema, dim, seed))


def _bytes(layer: FeatureEmbedding) -> int:
    return sum(module_bytes(layer.freeze()).values())


def free_knobs(spec: Spec) -> list[int]:
    """Return the numbers of the methods whose size is not set by hand."""
    knobs = [(i, m) for i, m in enumerate(spec.methods) if m.knob is not None]
    return [i for i, method in knobs if getattr(method, str(method.knob)) is None]


def solve(spec: Spec, schema: Schema, dim: int, limit: int, seed: int = 0) -> Spec:
    """Return the spec with its sizes as large as a limit of serving bytes allows.

    In a composition the last method with a free size is fitted to the limit. Those before it get
    equal shares of the compression: with two of them and a ratio of 100, the first alone has ratio
    10. Where the last one then cannot get small enough, the first one gets smaller.

    Raises:
        BudgetError: the smallest configuration is above the limit.
        ConfigError: the sizes are set by hand already.
    """
    free = free_knobs(spec)
    fixed = next((m for m in spec.methods if m.knob is not None), None)
    if not free and fixed is not None:
        raise ConfigError(
            f"{write(fixed)} sets {fixed.knob!r} by hand; give that or a ratio or budget, not both"
        )
    problem = _Problem(schema, dim, limit, seed)
    if len(free) < 2:
        return problem.fit(spec, free[0] if free else 0)
    full = schema.full_bytes(dim) if schema.bounded else limit * _RATIO_UNBOUNDED
    shared = spec
    for left, number in zip(range(len(free), 1, -1), free, strict=False):
        share = replace(problem, limit=int(full * (limit / full) ** (1 / left)))
        shared = share.fit_or_shrink(shared, number)
    try:
        return problem.fit(shared, free[-1])
    except BudgetError:
        return problem.fit_smaller(shared, free)


@dataclass(frozen=True)
class _Problem:
    """One size to find: see `solve`."""

    schema: Schema
    dim: int
    limit: int
    seed: int

    def fit(self, spec: Spec, number: int) -> Spec:
        """Make the size of a method as large as the limit allows."""
        method = spec.methods[number]
        if method.knob is not None and method.knob_in_bytes:
            return self._fit_bytes(spec, number)

        def size(value: int) -> int:
            return self._size(_with_knob(spec, number, value))

        smallest = self._smallest(spec, number)
        floor = size(smallest)
        if floor > self.limit:
            raise self._too_small(spec, floor)
        if method.knob is None:
            return spec
        return _with_knob(spec, number, _largest(size, smallest, self.limit))

    def fit_or_shrink(self, spec: Spec, number: int) -> Spec:
        """Fit a method without those that store its rows, or make it as small as it can be."""
        try:
            fitted = self.fit(spec.with_methods(spec.methods[: number + 1]), number)
        except BudgetError:
            return self.shrunk(spec, number)
        method = fitted.methods[number]
        return _with_knob(spec, number, getattr(method, str(method.knob)))

    def fit_smaller(self, spec: Spec, free: list[int]) -> Spec:
        """Fit the last method behind a first one that is about as large as lets it fit."""
        for number in free[1:-1]:
            spec = self.shrunk(spec, number)
        first = spec.methods[free[0]]
        found = self.fit(self.shrunk(spec, free[0]), free[-1])
        low, high = self._smallest(spec, free[0]), getattr(first, str(first.knob))
        for _ in range(_HALVINGS):
            middle = math.isqrt(low * high)
            try:
                found, low = self.fit(_with_knob(spec, free[0], middle), free[-1]), middle
            except BudgetError:
                high = middle
        return found

    def shrunk(self, spec: Spec, number: int) -> Spec:
        """Make a method as small as it can be."""
        return _with_knob(spec, number, self._smallest(spec, number))

    def _size(self, spec: Spec) -> int:
        return serving_bytes(spec, self.schema, self.dim, self.seed)

    def _smallest(self, spec: Spec, number: int) -> int:
        """Return the smallest size of a method, without those that store its rows."""
        outside = spec.with_methods(spec.methods[: number + 1])
        if not spec.methods[number].knob_in_bytes:
            layer = build_spec(outside, self.schema, self.dim) if number else None
            schema = self.schema if layer is None else _innermost(layer).schema
            return spec.methods[number].smallest_knob(schema)
        try:
            _ = self._size(_with_knob(outside, number, 1))
        except BudgetError as error:
            return error.floor
        return 1

    def _fit_bytes(self, spec: Spec, number: int) -> Spec:
        """Give a method that takes a limit of bytes what the others leave of it."""
        outside = self._outside(spec, number)
        if outside is not None:
            given = _with_knob(spec, number, max(1, self.limit - outside))
            try:
                if self._size(given) <= self.limit:
                    return given
            except BudgetError as error:
                raise self._too_small(spec, error.floor + outside) from error
        # it plans for rows stored by a codec of so many bytes a row: other forms are tried out
        low, high = 0, 4 * self._most()
        while high - low > 1:
            middle = (low + high) // 2
            size = self._size_or_none(_with_knob(spec, number, middle))
            low, high = (low, middle) if size is not None and size > self.limit else (middle, high)
        size = self._size_or_none(_with_knob(spec, number, max(low, 1)))
        if size is None or size > self.limit:
            raise self._too_small(spec, self._size(_with_knob(spec, number, high)))
        return _with_knob(spec, number, low)

    def _outside(self, spec: Spec, number: int) -> int | None:
        """Return the bytes that are not of the innermost layer; None where it has another inside.

        Also where there are several innermost layers, one a table.
        """
        if number < len(spec.inner):
            return None
        if not number:
            return 0
        layer = build_spec(_with_knob(spec, number, self._most()), self.schema, self.dim, self.seed)
        inner = layer
        while stored := inner.stored():
            if len(stored) > 1:
                return None
            inner = stored[0]
        return _bytes(layer) - _bytes(inner)

    def _most(self) -> int:
        """Return a limit that no layer reaches."""
        return max(self.limit, self.schema.full_bytes(self.dim) if self.schema.bounded else 0)

    def _size_or_none(self, spec: Spec) -> int | None:
        """Return the bytes of a spec, or None where a method's limit is too small for it."""
        try:
            return self._size(spec)
        except BudgetError:
            return None

    def _too_small(self, spec: Spec, floor: int) -> BudgetError:
        return BudgetError(
            f"{spec} at width {self.dim} needs at least {floor:,} bytes, "
            f"the budget is {self.limit:,}",
            floor,
        )


def _with_knob(spec: Spec, number: int, value: int) -> Spec:
    methods = list(spec.methods)
    knob = methods[number].knob
    if knob is not None:
        methods[number] = replace(methods[number], **{knob: value})
    return spec.with_methods(methods)


def _innermost(layer: FeatureEmbedding) -> FeatureEmbedding:
    """Return the layer at the end of those that store each other's rows."""
    while stored := layer.stored():
        layer = stored[0]
    return layer


def _largest(size: Callable[[int], int], low: int, limit: int) -> int:
    """Largest knob whose size is within the limit; sizes grow with the knob, or stop growing.

    Packed codes can take as many bytes for twice the knob (one number of 4 bits, or two). Where
    several doublings add none, the method is at its full size.
    """
    high, full, flat = 2 * low, low, 0
    previous = size(low)
    while (current := size(high)) <= limit:
        flat = flat + 1 if current == previous else 0
        if flat == _FLAT_DOUBLINGS:
            return full
        if not flat:
            full = high
        low, high, previous = high, 2 * high, current
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low
