"""The plain table: every id has a private row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig, RowEmbedding
from featemb.parts import Concat, OffsetAddress


@register
@dataclass(frozen=True, kw_only=True)
class Full(MethodConfig):
    """Uncompressed: ``e(f, x) = E[offset_f + x]``; the reference of every ratio.

    Bytes: ``4 D sum_f n_f``, for serving and (without optimizer) for training.

    Attributes:
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "one private row an id"
    paper: ClassVar[str] = "-"

    own_rows: ClassVar[str] = "leaves every id its own row: write the other method alone"

    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def build(self, context: BuildContext) -> RowEmbedding:
        """Make one table of all features' rows."""
        cardinalities = context.schema.cardinalities
        return RowEmbedding(
            context,
            self,
            address=OffsetAddress.of(cardinalities),
            rows=context.table(sum(cardinalities), context.dim, self.init),
            combine=Concat(),
        )
