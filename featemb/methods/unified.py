"""Unified Embedding: feature multiplexing in one shared table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.frequency import effective_sizes
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
from featemb.methods.hash import default_rows
from featemb.parts import Concat, SharedHashAddress
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Unified(MethodConfig):
    """All features read one table, several times each: feature multiplexing.

    Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML
    Systems", NeurIPS 2023 (2305.12102). With lookups l = 1..L_f of feature f,
    ``e(f, x) = concat_l E[h(x; salt_{f,l}) mod R]``, E of shape ``[R, C]`` and
    ``C = dim / lookups``. Collisions between features are harmless as far as the model reads the
    features by different weights; small uniform initial values matter.

    ``allot = "auto"`` chooses L_f by what a feature has to tell: the lookups, L a feature on
    average, are shared out in proportion to the fourth root of its effective number of ids
    (the perplexity of its training counts; of Zipf's law over its cardinality where there are no
    counts), at least 1 and at most 4 L each. The fourth root is the width rule of Wang et al.,
    "Deep & Cross Network", 2017; the paper leaves the counts to the user.

    ``tables`` splits R rows into so many sub-tables of equal size, which the lookups of all
    features take in turns: one to place on each of several devices. Bytes and answers' quality are
    those of one table, up to the hash.

    Any non-negative int64 is a valid id of an unbounded feature: no vocabulary is needed. An id
    never seen in training gets the rows that its hashes share with trained ids.

    Bytes: ``4 C (R + sum_f L_f P_f) + 8``, P_f ids in a collisionless feature, 8 for the seed.

    Attributes:
        rows: R, rows of the shared block; None takes the shared block to a tenth of the full
            table's numbers.
        lookups: L, lookups of a feature; it must divide ``dim``.
        allot: "equal" lookups for every feature, or "auto".
        per_feature: other lookup counts by feature name: such a feature's width is its count
            times ``dim / lookups``.
        tables: sub-tables of the shared block.
        collisionless: features with at most this many ids own private rows, behind the shared
            block.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "unified"
    summary: ClassVar[str] = "feature multiplexing: one shared table, several lookups a feature"
    paper: ClassVar[str] = "Coleman et al., NeurIPS 2023"
    knob: ClassVar[str] = "rows"
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    lookups: int = tunable(1, choices=(1, 2, 4, 8))
    allot: str = tunable("equal", choices=("equal", "auto"))
    per_feature: dict[str, int] = field(default_factory=dict)
    tables: int = 1
    collisionless: int = tunable(0, choices=(0, 10, 100, 1000))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("lookups", "at least 1", self.lookups >= 1)
        self.require("allot", "equal or auto", self.allot in ("equal", "auto"))
        self.require("tables", "at least 1", self.tables >= 1)
        self.require("collisionless", "at least 0", self.collisionless >= 0)
        positive = all(count >= 1 for count in self.per_feature.values())
        self.require("per_feature", "counts of at least 1", positive)

    def at_width(self, dim: int) -> MethodConfig:
        """Keep the largest number of lookups that divides the width; features get equal widths."""
        lookups = max(n for n in range(1, self.lookups + 1) if dim % n == 0)
        return replace(self, lookups=lookups, allot="equal", per_feature={})

    def smallest_knob(self, schema: Schema) -> int:
        """One row a sub-table."""
        return self.tables

    def build(self, context: BuildContext) -> RowEmbedding:
        """Make the shared table, with private rows behind the shared block."""
        schema = context.schema
        if context.dim % self.lookups:
            raise ConfigError(
                f"unified: lookups must divide dim, got dim={context.dim}, lookups={self.lookups}"
            )
        chunk = context.dim // self.lookups
        counts = self._counts(schema)
        shared = default_rows(self, schema, self.lookups, least=self.tables)
        first_private, end = [], shared
        for feature, count in zip(schema.features, counts, strict=True):
            small = feature.cardinality is not None and feature.cardinality <= self.collisionless
            first_private.append(end if small else -1)
            end += (feature.cardinality or 0) * count if small else 0
        address = SharedHashAddress(
            sizes=tuple(
                shared // self.tables + (number < shared % self.tables)
                for number in range(self.tables)
            ),
            lookups=tuple(counts),
            first_private=tuple(first_private),
            seed=context.seed_tensor(),
        )
        return RowEmbedding(
            context,
            self,
            address=address,
            rows=context.rows(end, chunk, self.init),
            combine=Concat(),
            widths=[count * chunk for count in counts],
        )

    def _counts(self, schema: Schema) -> list[int]:
        """Lookups of each feature."""
        for name in self.per_feature:
            schema.index(name)
        counts = [self.lookups] * schema.num_features
        if self.allot == "auto":
            roots = [size**0.25 for size in effective_sizes(schema)]
            scale = self.lookups * len(roots) / sum(roots)
            counts = [max(1, min(4 * self.lookups, round(scale * root))) for root in roots]
        return [
            self.per_feature.get(name, count)
            for name, count in zip(schema.names, counts, strict=True)
        ]
