"""The frequency filter: rare ids share one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
from featemb.methods.hash import default_rows
from featemb.parts import Concat, FeatureAddress
from featemb.parts.hot import HotAddress, hot_rank
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Frequency(MethodConfig):
    """The most frequent ids have private rows, the rest of a feature shares one: the unknown row.

    The second of two honest baselines, and what most teams do by a minimum count. The h most
    frequent ids *of all features together* are kept, by the training counts: with k keeping ids of
    count c or more, the filter is "minimum count c".

    Without counts, ids are taken to be numbered by frequency (see `featemb.frequency`). Where the
    kept ids of every feature follow each other, as with ids numbered by frequency, nothing else is
    stored; otherwise a bitmap of 1.5 bits an id.

    An id never seen in training gets its feature's unknown row, which rare ids have trained.

    Bytes: ``4 D rows``, and 0 or ``12 sum_f ceil(n_f / 64)`` for the bitmap.

    Attributes:
        rows: private rows and the F unknown rows together; None takes a tenth of the full table's.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "frequency"
    summary: ClassVar[str] = "private rows for frequent ids, one shared row for the rest"
    paper: ClassVar[str] = "-"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def smallest_knob(self, schema: Schema) -> int:
        """The unknown rows."""
        return schema.num_features

    def build(self, context: BuildContext) -> RowEmbedding:
        """Choose the private ids and make the table."""
        schema = context.schema
        unknown = schema.num_features
        hot = min(default_rows(self, schema) - unknown, sum(schema.cardinalities))
        address = HotAddress(
            hot=hot_rank(schema, hot, context.device),
            cold=FeatureAddress(),
            num_hot=hot,
            lookups=1,
            spread=False,
        )
        table = context.rows(hot + unknown, context.dim, self.init)
        return RowEmbedding(context, self, address=address, rows=table, combine=Concat())
