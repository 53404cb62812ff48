"""Frequency-based double hashing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from featemb.config import register, tunable
from featemb.frequency import hot_sizes
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.adapt import cold_blocks, hot_and_cold
from featemb.methods.hash import default_rows, share_rows
from featemb.methods.multi_hash import COMBINES, probe_width, shared_block, weighted
from featemb.parts import Lookup, Source, Stack
from featemb.parts.hot import HotAddress, hot_rank
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class DoubleHash(MethodConfig):
    """Frequent ids are private, the tail reads two hashed rows and combines them.

    ``e(f, x) = H[rank(f, x)]`` for the h most frequent ids of all features together, else
    ``combine(T_f[h_{f,1}(x)], T_f[h_{f,2}(x)])``. Zhang et al., "Model Size Reduction Using
    Frequency Based Double Hashing for Recommender Systems", RecSys 2020 (2007.14523). Two tail ids
    have the same vector only if both hashes collide.

    With "mean" and "sum" a private id reads its row twice; with "concat" it owns two rows of half
    the width. ``weights`` replaces the combination by a sum with learned importance weights
    (Svenstrup et al., NeurIPS 2017); ``multiplexed`` lets the tails of all features share one block
    (Coleman et al., NeurIPS 2023). Without counts, ids are taken to be numbered by frequency.

    An id never seen in training belongs to the tail. An unbounded feature without counts is all
    tail, and takes any non-negative int64.

    Bytes: ``4 C rows + 8``, C = D or D / 2 with "concat", weights as in ``multi_hash``, and 0 or
    ``12 sum_f ceil(n_f / 64)`` for the bitmap of private ids (see `featemb.parts.hot`).

    Attributes:
        rows: private and tail rows together, of C numbers; None takes a tenth of the full table's
            numbers.
        hot_share: share of ``rows`` for private ids.
        combine: "mean", "sum" or "concat".
        weights: importance weight vectors, as a multiple of ``rows``; 0 for none.
        multiplexed: whether the tails of all features share one block.
        power: exponent of the share-out rule of the tail's rows (see ``hash``).
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "double_hash"
    summary: ClassVar[str] = "private rows for frequent ids, two hashed rows for the tail"
    paper: ClassVar[str] = "Zhang et al., RecSys 2020"
    knob: ClassVar[str] = "rows"
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    hot_share: float = tunable(0.5, 0.1, 0.9)
    combine: str = tunable("mean", choices=("mean", "sum", "concat"))
    weights: float = tunable(0.0, choices=(0.0, 0.5, 1.0))
    multiplexed: bool = tunable(False, choices=(False, True))
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("hot_share", "between 0 and 1", 0 <= self.hot_share <= 1)
        self.require("combine", f"one of {', '.join(COMBINES)}", self.combine in COMBINES)
        self.require("weights", "at least 0 and finite", 0 <= self.weights < float("inf"))
        if self.combine == "concat":
            self.require("weights", '0 with combine="concat"', self.weights == 0)

    def at_width(self, dim: int) -> MethodConfig:
        """Average first-order weights where the width cannot be halved."""
        return replace(self, combine="mean") if self.combine == "concat" and dim % 2 else self

    def smallest_knob(self, schema: Schema) -> int:
        """One tail row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Choose the private ids, share out the tail's rows and make one table of both."""
        schema = context.schema
        width = probe_width(self, context.dim, self.combine, 2)
        per_id = 2 if self.combine == "concat" else 1
        rows = default_rows(self, schema, per_id)
        ids, _ = hot_and_cold(schema, rows // per_id, self.hot_share)
        tail = rows - ids * per_id
        hot = hot_sizes(schema, ids)
        left = [(f.cardinality or tail) - h for f, h in zip(schema.features, hot, strict=True)]
        if self.multiplexed:
            cold, tail = shared_block(context, max(tail, 1), 2), max(tail, 1)
        else:
            sizes = share_rows([n * per_id for n in left], tail, self.power)
            cold, tail = cold_blocks(context, sizes, lookups=2), sum(sizes)
        address = HotAddress(
            hot=hot_rank(schema, ids, context.device),
            cold=cold,
            num_hot=ids * per_id,
            lookups=2,
            spread=self.combine == "concat",
        )
        table = context.rows(ids * per_id + tail, width, self.init)
        source: Source
        if weights := round(self.weights * rows):
            vectors = Lookup(address=address, rows=table, combine=Stack())
            source = weighted(context, vectors, weights, 2)
        else:
            source = Lookup(address=address, rows=table, combine=COMBINES[self.combine]())
        return PartsEmbedding(context, self, source)
