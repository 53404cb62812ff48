"""Compositional embeddings: quotients and remainders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import ClassVar

from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import default_rows, share_rows
from featemb.parts import (
    Concat,
    DigitAddress,
    DigitHashAddress,
    DigitLookup,
    Lookup,
    Multiply,
    Part,
    Source,
    Sum,
)
from featemb.schema import Schema

_COMBINES: dict[str, type[Part]] = {"multiply": Multiply, "add": Sum, "concat": Concat}


@register
@dataclass(frozen=True, kw_only=True)
class QR(MethodConfig):
    """An id is written in k digits of a mixed radix, and every digit has a small table.

    ``e(f, x) = W_1[x mod m_1] o W_2[(x div m_1) mod m_2] o ... o W_k[x div (m_1 ... m_{k-1})]``
    with o one of multiply, add, concatenate and ``m_1 ... m_k >= n_f``: no two ids share all rows.
    Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
    Recommendation Systems", KDD 2020 (1909.02107); k = 2 is the quotient-remainder trick.

    Within a feature's rows m_1 is as large as it can be and the other radices are balanced: two ids
    that share the first row are m_1 apart, so that with ids numbered by frequency the frequent ones
    do not share it among each other. A feature that gets n_f rows is whole. ``collisions`` sets the
    number of ids that share a row of the first table instead (the paper's collision number, its
    m_1 = ceil(n_f / collisions)).

    Initial values: with "multiply" the first table is uniform in ``[-init, init]`` and the factors
    in ``[1 - init, 1 + init]``, so that products start at the dense table's scale; with "add" all
    are uniform within ``init / sqrt(k)``. ``multiplexed`` hashes all digits of all features into
    one shared block (Coleman et al., NeurIPS 2023, compare this form); there every factor starts
    uniform with the k-th root of the dense standard deviation.

    An id never seen in training gets the rows of its digits, which other ids have trained.

    Bytes: ``4 C sum_f sum_j m_j``, C = D or D / k with "concat"; 8 more for the hash seed if
    multiplexed. The smallest size takes all radices near ``n_f^(1/k)``.

    Attributes:
        rows: rows of all features together, of which those without a collision number share what
            the others leave; None takes a tenth of the full table's numbers.
        partitions: k.
        combine: "multiply", "add" or "concat".
        collisions: ids that share a row of the first table, for every feature: a size set by hand
            that ``rows`` does not change; None follows ``rows``.
        per_feature: other collision numbers by feature name; 1 keeps a feature whole.
        multiplexed: whether the digits of all features share one block.
        power: exponent of the share-out rule among features (see ``hash``).
        init: scale of the initial values.
    """

    name: ClassVar[str] = "qr"
    summary: ClassVar[str] = "quotient and remainder rows, multiplied, added or side by side"
    paper: ClassVar[str] = "Shi et al., KDD 2020"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    partitions: int = tunable(2, 2, 4)
    combine: str = tunable("multiply", choices=("multiply", "add", "concat"))
    collisions: int | None = None
    per_feature: dict[str, int] = field(default_factory=dict)
    multiplexed: bool = tunable(False, choices=(False, True))
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("partitions", "at least 2", self.partitions >= 2)
        self.require("combine", f"one of {', '.join(_COMBINES)}", self.combine in _COMBINES)
        self.require("collisions", "at least 1", self.collisions is None or self.collisions >= 1)
        positive = all(count >= 1 for count in self.per_feature.values())
        self.require("per_feature", "collision numbers of at least 1", positive)

    def at_width(self, dim: int) -> MethodConfig:
        """Multiply first-order weights where the width cannot be split among the digits."""
        if self.combine == "concat" and dim % self.partitions:
            return replace(self, combine="multiply")
        return self

    def smallest_knob(self, schema: Schema) -> int:
        """The rows of balanced radices; one row where a block is shared."""
        if self.multiplexed:
            return schema.num_features
        return sum(self._least(schema))

    def _per_id(self) -> int:
        return self.partitions if self.combine == "concat" else 1

    def _least(self, schema: Schema) -> list[int]:
        least = []
        for feature, n in zip(schema.features, schema.cardinalities, strict=True):
            fixed = self._collisions(feature.name)
            radices = balanced(n, self.partitions) if fixed is None else self._fixed(n, fixed)
            least.append(min(n * self._per_id(), sum(radices)))
        return least

    def _collisions(self, name: str) -> int | None:
        return self.per_feature.get(name, self.collisions)

    def _fixed(self, n: int, collisions: int) -> list[int]:
        """Radices of a collision number: the first shared by so many ids, the others balanced."""
        first = -(-n // collisions)
        return [first, *balanced(-(-n // first), self.partitions - 1)]

    def _radices(self, schema: Schema, rows: int) -> list[list[int]]:
        """Radices of every feature; a whole feature has one."""
        least, limits = self._least(schema), [n * self._per_id() for n in schema.cardinalities]
        fixed = [self._collisions(feature.name) for feature in schema.features]
        # a feature with a collision number gets exactly the rows that it needs
        most = [
            few if one is not None else n for few, n, one in zip(least, limits, fixed, strict=True)
        ]
        sizes = share_rows(most, max(rows, sum(least)), self.power, least)
        found = []
        for n, size, few, one in zip(schema.cardinalities, sizes, least, fixed, strict=True):
            if size == n * self._per_id() or (one is not None and few == n * self._per_id()):
                found.append([n])
            elif one is not None:
                found.append(self._fixed(n, one))
            else:
                found.append(largest_first(n, size, self.partitions))
        return found

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Choose the radices and make one table of all digits' rows."""
        schema, digits = context.schema, self.partitions
        for name in self.per_feature:
            schema.index(name)
        if self.combine == "concat" and context.dim % digits:
            raise ConfigError(
                f"qr: partitions must divide dim, got dim={context.dim}, partitions={digits}"
            )
        width = context.dim // self._per_id()
        rows = default_rows(self, schema, self._per_id(), least=self.smallest_knob(schema))
        radices = self._radices(schema, rows)
        if self.multiplexed:
            return PartsEmbedding(context, self, self._shared(context, width, rows, radices))
        return PartsEmbedding(context, self, self._side_by_side(context, width, radices))

    def _shared(
        self, context: BuildContext, width: int, rows: int, radices: list[list[int]]
    ) -> Lookup:
        digits = self.partitions
        padded = [one + [1] * (digits - len(one)) for one in radices]
        address = DigitHashAddress(
            size=rows,
            strides=_by_digit([_strides(one) for one in padded]),
            radices=_by_digit(padded),
            seed=context.seed_tensor(),
        )
        bound = self.init
        if self.combine == "multiply":  # standard deviations multiply; a bound has root 3 of them
            bound = 3**0.5 * (self.init / 3**0.5) ** (1 / digits)
        if self.combine == "add":
            bound = self.init / digits**0.5
        table = context.rows(rows, width, bound)
        return Lookup(address=address, rows=table, combine=_COMBINES[self.combine]())

    def _side_by_side(self, context: BuildContext, width: int, radices: list[list[int]]) -> Source:
        spread = self.combine == "concat"
        address, firsts, total = blocks(radices, self.partitions, spread)
        bound = self.init / self.partitions**0.5 if self.combine == "add" else self.init
        multiply = self.combine == "multiply" and not spread
        center = 1.0 if multiply else 0.0
        table = context.rows(total, width, bound, center, firsts)
        if spread:
            return Lookup(address=address, rows=table, combine=Concat())
        used = tuple(map(len, radices))
        return DigitLookup(address=address, rows=table, used=used, multiply=multiply)


def balanced(n: int, count: int) -> list[int]:
    """Return ``count`` radices near ``n^(1/count)`` whose product is at least n, largest first."""
    if count == 1:
        return [n]
    first = round(n ** (1 / count))
    while first**count < n:
        first += 1
    while first > 1 and (first - 1) ** count >= n:
        first -= 1
    return [first, *balanced(-(-n // first), count - 1)]


def largest_first(n: int, rows: int, count: int) -> list[int]:
    """Return radices with the largest possible first one that need at most ``rows`` rows."""
    first = rows
    while first > 0:
        rest = balanced(-(-n // first), count - 1)
        if first + sum(rest) <= rows:
            return [first, *rest]
        first = rows - sum(rest)  # fewer rows in the first table never need fewer in the others
    return balanced(n, count)


def blocks(radices: list[list[int]], digits: int, spread: bool) -> tuple[DigitAddress, int, int]:
    """Lay the first tables of all features before their other tables.

    Args:
        radices: of every feature; a whole feature has one.
        digits: k.
        spread: whether an id of a whole feature owns k rows, else it reads its one row k times.

    Returns:
        The address, the rows of the first tables, and all rows.
    """
    own = [one[0] * digits if spread and len(one) == 1 else one[0] for one in radices]
    starts = (0, *accumulate(own))
    end = starts[-1]
    offsets, strides, filled = [], [], []
    for start, one in zip(starts, radices, strict=False):
        offset = [start]
        for radix in one[1:]:
            offset.append(end)
            end += radix
        if len(one) == 1:
            offset = [start + j * one[0] * spread for j in range(digits)]
        offsets.append(offset)
        strides.append(_strides(one) if len(one) > 1 else [1] * digits)
        filled.append(one if len(one) > 1 else one * digits)
    address = DigitAddress(
        offsets=_by_digit(offsets), strides=_by_digit(strides), radices=_by_digit(filled)
    )
    return address, starts[-1], end


def _strides(radices: list[int]) -> list[int]:
    """Return what an id is divided by for each digit."""
    return [prod(radices[:j]) for j in range(len(radices))]


def _by_digit(of_features: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(zip(*of_features, strict=True))
