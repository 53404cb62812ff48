"""The plain table at a smaller width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig, RowEmbedding
from featemb.methods.hash import Hash
from featemb.parts import Concat, OffsetAddress


@register
@dataclass(frozen=True, kw_only=True)
class LowDim(MethodConfig):
    """Every id keeps a private row, of fewer numbers: ``e(f, x) = E[offset_f + x]``, E ``[N, w]``.

    The first of two honest baselines: before an id shares its row, the rows can be narrower. The
    layer's output is w numbers a feature, so the model behind it is narrower too. Sizes go in
    steps of N numbers, and end at w = 1.

    An id never seen in training gets its private row as it was initialised.

    Bytes: ``4 w N``.

    Attributes:
        width: w, at most the width asked for; None takes a tenth of it.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "lowdim"
    summary: ClassVar[str] = "one private row an id, of a smaller width"
    paper: ClassVar[str] = "-"
    axis: ClassVar[Axis] = "shape"
    knob: ClassVar[str] = "width"

    width: int | None = None
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a row of one number cannot be narrower."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> RowEmbedding:
        """Make one table of all features' rows."""
        cardinalities = context.schema.cardinalities
        width = max(1, context.dim // 10) if self.width is None else min(self.width, context.dim)
        return RowEmbedding(
            context,
            self,
            address=OffsetAddress.of(cardinalities),
            rows=context.rows(sum(cardinalities), width, self.init),
            combine=Concat(),
            widths=(width,) * len(cardinalities),
        )
