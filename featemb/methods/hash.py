"""The hashing trick, per feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from featemb.config import register
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
from featemb.parts import Concat, HashAddress
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Hash(MethodConfig):
    """Each feature hashes into rows of its own: ``e(f, x) = E_f[h_f(x) mod m_f]``.

    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009. A seeded
    64-bit mixer replaces the plain modulo, whose collisions follow the order of the ids.

    Rows are shared out by one rule: ``m_f = min(n_f, lambda n_f^power)``, at least 1, with lambda
    such that they sum to ``rows``. A feature that gets ``m_f = n_f`` is whole: its ids have
    private rows. With the default ``power = 0.5`` small features stay whole and the rest of the
    budget goes to the large ones by the root of their cardinality; ``power = 1`` is the
    proportional split of most papers, which crushes small features; ``power = 0`` gives equal
    parts.

    An id never seen in training gets the row that its hash shares with trained ids.

    Bytes: ``4 D rows + 8``, 8 for the seed.

    Attributes:
        rows: rows of all features together; None takes a tenth of the full table's.
        power: exponent of the rule above.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "hash"
    summary: ClassVar[str] = "per-feature hashing; small features whole"
    paper: ClassVar[str] = "Weinberger et al., ICML 2009"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    power: float = 0.5
    init: float = 0.05

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("rows", "at least 1", self.rows is None or self.rows >= 1)
        self.require("power", "between 0 and 1", 0 <= self.power <= 1)

    def smallest_knob(self, schema: Schema) -> int:
        """One row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> RowEmbedding:
        """Share out the rows and make one table of all blocks."""
        cardinalities = context.schema.cardinalities
        tenth = max(-(-sum(cardinalities) // 10), len(cardinalities))
        rows = tenth if self.rows is None else self.rows
        self.require(
            "rows", f"at least {len(cardinalities)}, one a feature", rows >= len(cardinalities)
        )
        sizes = share_rows(cardinalities, rows, self.power)
        ends = tuple(accumulate(sizes))
        address = HashAddress(
            offsets=(0, *ends[:-1]),
            sizes=sizes,
            whole=tuple(size == n for size, n in zip(sizes, cardinalities, strict=True)),
            seed=context.seed_tensor(),
        )
        table = context.table(ends[-1], context.dim, self.init)
        return RowEmbedding(context, self, address=address, rows=table, combine=Concat())


def share_rows(cardinalities: Sequence[int], rows: int, power: float) -> tuple[int, ...]:
    """Share out rows by ``m_f = min(n_f, lambda n_f^power)``, each at least 1.

    Returns:
        Integers that sum to ``min(rows, sum(cardinalities))``: fractions are rounded down, and
        the rows left go one by one to the features with the largest fraction lost.
    """
    rows = min(rows, sum(cardinalities))
    low, high = 0.0, float(rows)
    for _ in range(100):
        scale = (low + high) / 2
        total = sum(_share(n, scale, power) for n in cardinalities)
        low, high = (scale, high) if total <= rows else (low, scale)
    exact = [_share(n, low, power) for n in cardinalities]
    sizes = [int(share) for share in exact]
    by_loss = sorted(range(len(sizes)), key=lambda f: sizes[f] - exact[f])
    left = rows - sum(sizes)
    while left > 0:
        for f in by_loss:
            if left > 0 and sizes[f] < cardinalities[f]:
                sizes[f] += 1
                left -= 1
    return tuple(sizes)


def _share(cardinality: int, scale: float, power: float) -> float:
    wanted: float = scale * float(cardinality) ** power
    return min(float(cardinality), max(1.0, wanted))
