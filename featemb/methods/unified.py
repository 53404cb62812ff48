"""Unified Embedding: feature multiplexing in one shared table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from featemb.config import register
from featemb.errors import ConfigError
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
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

    Any non-negative int64 is a valid id of an unbounded feature: no vocabulary is needed. An id
    never seen in training gets the rows that its hashes share with trained ids.

    Bytes: ``4 C (R + L P) + 8``, P ids in collisionless features, 8 for the seed.

    Attributes:
        rows: R, rows of the shared block; None takes the shared block to a tenth of the full
            table's numbers.
        lookups: L, lookups of a feature; it must divide ``dim``.
        per_feature: other lookup counts by feature name: such a feature's width is its count
            times ``dim / lookups``.
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
    lookups: int = 1
    per_feature: dict[str, int] = field(default_factory=dict)
    collisionless: int = 0
    init: float = 0.05

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("rows", "at least 1", self.rows is None or self.rows >= 1)
        self.require("lookups", "at least 1", self.lookups >= 1)
        self.require("collisionless", "at least 0", self.collisionless >= 0)
        positive = all(count >= 1 for count in self.per_feature.values())
        self.require("per_feature", "counts of at least 1", positive)

    def at_width(self, dim: int) -> MethodConfig:
        """Keep the largest number of lookups that divides the width; features get equal widths."""
        lookups = max(n for n in range(1, self.lookups + 1) if dim % n == 0)
        return replace(self, lookups=lookups, per_feature={})

    def build(self, context: BuildContext) -> RowEmbedding:
        """Make the shared table, with private rows behind the shared block."""
        schema = context.schema
        if context.dim % self.lookups:
            raise ConfigError(
                f"unified: lookups must divide dim, got dim={context.dim}, lookups={self.lookups}"
            )
        chunk = context.dim // self.lookups
        for name in self.per_feature:
            schema.index(name)
        counts = [self.per_feature.get(name, self.lookups) for name in schema.names]
        shared = self._shared_rows(schema, chunk, context.dim)
        first_private, end = [], shared
        for feature in schema.features:
            small = feature.cardinality is not None and feature.cardinality <= self.collisionless
            first_private.append(end if small else -1)
            end += (feature.cardinality or 0) * max(counts) if small else 0
        address = SharedHashAddress(
            size=shared,
            lookups=max(counts),
            first_private=tuple(first_private),
            seed=context.seed_tensor(),
        )
        return RowEmbedding(
            context,
            self,
            address=address,
            rows=context.table(end, chunk, self.init),
            combine=Concat(),
            widths=[count * chunk for count in counts],
        )

    def _shared_rows(self, schema: Schema, chunk: int, dim: int) -> int:
        if self.rows is not None:
            return self.rows
        if not schema.bounded:
            raise ConfigError("unified: a schema with unbounded features needs rows or a budget")
        return -(-sum(schema.cardinalities) * dim // (10 * chunk))
