"""AdaptEmb: private rows for hot ids, hashed rows for cold ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.frequency import hot_sizes
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
from featemb.methods.hash import default_rows, share_rows
from featemb.parts import Concat, HashAddress
from featemb.parts.hot import HotAddress, hot_rank
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Adapt(MethodConfig):
    """Hot ids by training counts are private, cold ids are hashed.

    ``e(f, x) = H[rank(f, x)]`` for the h most frequent ids of all features together, else
    ``C_f[hash(x) mod m_f]``. Alibaba DeepRec's adaptive embedding variable, in the form of the
    study of Zhang et al., PVLDB 17, 2024 (AdaptEmb).

    Deviations: hot ids are chosen over all features by count, not a share of each feature; cold
    rows are hashed by a seeded mixer instead of a modulo; the study stores an int32 an id to tell
    hot from cold and leaves it out of the count, here it is counted and takes no bytes where ids
    are numbered by frequency, else 1.5 bits an id (see `featemb.parts.hot`). Without counts, ids
    are taken to be numbered by frequency.

    An id never seen in training is cold: it gets the row that its hash shares with cold ids.

    Bytes: ``4 D rows + 8``, and 0 or ``12 sum_f ceil(n_f / 64)`` for the bitmap.

    Attributes:
        rows: hot and cold rows together; None takes a tenth of the full table's.
        hot_share: h as a share of ``rows``.
        power: exponent of the share-out rule of the cold rows (see ``hash``).
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "adapt"
    summary: ClassVar[str] = "private rows for hot ids, hashed rows for cold ones"
    paper: ClassVar[str] = "Zhang et al., PVLDB 17, 2024 (AdaptEmb)"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    hot_share: float = tunable(0.5, 0.1, 0.9)
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("hot_share", "between 0 and 1", 0 <= self.hot_share <= 1)

    def smallest_knob(self, schema: Schema) -> int:
        """One cold row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> RowEmbedding:
        """Choose the hot ids, share out the cold rows and make one table of both."""
        schema = context.schema
        rows = default_rows(self, schema)
        hot, cold = hot_and_cold(schema, rows, self.hot_share)
        left = [n - h for n, h in zip(schema.cardinalities, hot_sizes(schema, hot), strict=True)]
        sizes = share_rows(left, cold, self.power)
        address = HotAddress(
            hot=hot_rank(schema, hot, context.device),
            cold=cold_blocks(context, sizes, lookups=1),
            num_hot=hot,
            lookups=1,
            spread=False,
        )
        table = context.rows(hot + sum(sizes), context.dim, self.init)
        return RowEmbedding(context, self, address=address, rows=table, combine=Concat())


def hot_and_cold(schema: Schema, rows: int, hot_share: float) -> tuple[int, int]:
    """Split rows into hot and cold ones: every feature keeps a cold row, unless all ids are hot."""
    total = sum(feature.cardinality or 0 for feature in schema.features)
    if schema.bounded and rows >= total:
        return total, 0
    hot = max(0, min(round(rows * hot_share), rows - schema.num_features, total))
    return hot, rows - hot


def cold_blocks(context: BuildContext, sizes: tuple[int, ...], lookups: int) -> HashAddress:
    """Return the address of hashed blocks side by side, one a feature; none has private rows."""
    starts = [sum(sizes[:f]) for f in range(len(sizes))]
    return HashAddress(
        offsets=tuple(starts),
        sizes=sizes,
        whole=(False,) * len(sizes),
        lookups=lookups,
        spread=False,
        seed=context.seed_tensor(),
    )
