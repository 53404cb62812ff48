"""The hashing trick, per feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from featemb.config import register, tunable
from featemb.errors import ConfigError
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

    An unbounded feature takes any non-negative int64, is never whole, and shares as if it had as
    many ids as the largest bounded one, at least ``rows``. An id never seen in training gets the
    row that its hash shares with trained ids.

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
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def smallest_knob(self, schema: Schema) -> int:
        """One row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> RowEmbedding:
        """Share out the rows and make one table of all blocks."""
        rows = default_rows(self, context.schema)
        address, total = hash_blocks(context, share(self, context.schema, rows))
        table = context.rows(total, context.dim, self.init)
        return RowEmbedding(context, self, address=address, rows=table, combine=Concat())


def default_rows(
    config: MethodConfig,
    schema: Schema,
    per_id: int = 1,
    field: str = "rows",
    least: int | None = None,
) -> int:
    """Return a configuration's number of rows: a tenth of the full table's where it sets none.

    Args:
        config: a configuration.
        schema: the features.
        per_id: rows that take the place of one of the full table's.
        field: the configuration's field that holds the number.
        least: smallest number allowed; one row a feature by default.

    Raises:
        ConfigError: there are too few rows, or no cardinality to take a tenth of.
    """
    rows: int | None = getattr(config, field)
    least = schema.num_features if least is None else least
    if rows is None:
        if not schema.bounded:
            raise ConfigError(
                f"{config.name}: a schema with unbounded features needs {field} or a budget"
            )
        return max(-(-sum(schema.cardinalities) * per_id // 10), least)
    config.require(field, f"at least {least} for {schema.num_features} features", rows >= least)
    return rows


def share(config: MethodConfig, schema: Schema, rows: int, per_id: int = 1) -> tuple[int, ...]:
    """Share out rows among features by `share_rows`; negative sizes mark the whole ones.

    Args:
        config: a configuration with a field ``power``.
        schema: the features; unbounded ones count as the largest, at least as ``rows``.
        rows: rows of all together.
        per_id: rows that an id of a whole feature owns.
    """
    known = [f.cardinality * per_id for f in schema.features if f.cardinality is not None]
    endless = max([rows + 1, *known])
    limits = [f.cardinality * per_id if f.cardinality else endless for f in schema.features]
    sizes = share_rows(limits, rows, getattr(config, "power", 0.5))
    bounded = [f.cardinality is not None for f in schema.features]
    full = [ok and size == n for ok, size, n in zip(bounded, sizes, limits, strict=True)]
    return tuple(-size if whole else size for size, whole in zip(sizes, full, strict=True))


def hash_blocks(
    context: BuildContext, sizes: Sequence[int], lookups: int = 1, spread: bool = False
) -> tuple[HashAddress, int]:
    """Return the address of blocks side by side, of `share`'s sizes, and their rows in all."""
    ends = tuple(accumulate(abs(size) for size in sizes))
    address = HashAddress(
        offsets=(0, *ends[:-1]),
        sizes=tuple(abs(size) for size in sizes),
        whole=tuple(size < 0 for size in sizes),
        lookups=lookups,
        spread=spread,
        seed=context.seed_tensor(),
    )
    return address, ends[-1]


def share_rows(
    limits: Sequence[int], rows: int, power: float, least: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Share out rows by ``m_f = min(n_f, lambda n_f^power)``, each at least ``least[f]``.

    Args:
        limits: n_f, the most rows that each feature can use.
        rows: rows of all together, at least the sum of ``least``.
        power: exponent.
        least: smallest number of rows of each feature; 1 by default (0 where n_f is 0).

    Returns:
        Integers that sum to ``min(rows, sum(limits))``: fractions are rounded down, and the rows
        left go one by one to the features with the largest fraction lost.
    """
    least = [1] * len(limits) if least is None else least
    rows = min(rows, sum(limits))
    features = list(zip(limits, least, strict=True))
    low, high = 0.0, float(rows)
    for _ in range(100):
        scale = (low + high) / 2
        total = sum(_share(n, scale, power, few) for n, few in features)
        low, high = (scale, high) if total <= rows else (low, scale)
    exact = [_share(n, low, power, few) for n, few in features]
    sizes = [int(one) for one in exact]
    by_loss = sorted(range(len(sizes)), key=lambda f: sizes[f] - exact[f])
    left = rows - sum(sizes)
    while left > 0:
        for f in by_loss:
            if left > 0 and sizes[f] < limits[f]:
                sizes[f] += 1
                left -= 1
    return tuple(sizes)


def _share(limit: int, scale: float, power: float, least: int) -> float:
    wanted: float = scale * float(limit) ** power if limit else 0.0
    return min(float(limit), max(float(least), wanted))
