"""Magnitude pruning: the smallest numbers, or rows, of a trained table are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.pruning import PrunedEmbedding, Unit, default_kept
from featemb.schema import Schema
from featemb.stage import Stage


@register
@dataclass(frozen=True, kw_only=True)
class Magnitude(MethodConfig):
    """The plain table is trained; the numbers of largest magnitude are kept and trained further.

    ``e(f, x) = M[i] * E[i]``, ``i = offset_f + x``, M the mask of the K largest ``|E[i, j]|`` of
    the whole table, or with ``unit=rows`` of the K rows of largest ``||E[i]||_1``. The baseline of
    all pruning methods (Han et al., "Learning both Weights and Connections for Efficient Neural
    Networks", NeurIPS 2015).

    Stages: ``train``, the full table; ``tune``, which begins by fixing M, keeps all weights and
    starts the optimizer anew. Before ``tune`` eval mode and `freeze` use the mask of the moment,
    so that every validation score is that of a table of the served size.

    An id never seen in training keeps its initial values, which are among the smallest where
    ``init`` is small against the trained numbers: it mostly reads zeros.

    Bytes: ``4 K`` and the index of the kept entries in its smallest form (`featemb.parts.kept`): a
    bitmask of 1.5 bits an entry, or a list of 1 or 2 bytes a kept one.

    Attributes:
        kept: K; None takes a tenth of all.
        unit: "weights" prunes single numbers, "rows" whole rows.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "full table in training; its largest numbers, or rows, are kept"
    paper: ClassVar[str] = "Han et al., NeurIPS 2015"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    unit: str = tunable("weights", choices=("weights", "rows"))
    init: float = tunable(0.01, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the unit."""
        super().__post_init__()
        self.require("unit", "'weights' or 'rows'", self.unit in ("weights", "rows"))

    def build(self, context: BuildContext) -> MagnitudeEmbedding:
        """Make the full table."""
        return MagnitudeEmbedding(context, self)

    def entries(self, schema: Schema, dim: int) -> int:
        """Number of rows or numbers of the full table."""
        return sum(schema.cardinalities) * (1 if self.unit == "rows" else dim)


class MagnitudeEmbedding(PrunedEmbedding):
    """A full table whose smallest entries are pruned before the last stage."""

    config: Magnitude

    def __init__(self, context: BuildContext, config: Magnitude) -> None:
        kept = default_kept(config.entries(context.schema, context.dim), config.kept)
        unit: Unit = "rows" if config.unit == "rows" else "weights"
        super().__init__(context, config, unit, kept, config.init)

    def importance(self) -> Tensor:
        """Magnitudes, or L1 norms of rows."""
        magnitude = self.weight.abs()
        return magnitude.sum(1, keepdim=True) if self.config.unit == "rows" else magnitude

    def stages(self) -> tuple[Stage, ...]:
        """The full table, then the pruned one."""
        return (Stage("train"), Stage("tune"))

    def begin_stage(self, stage: Stage) -> None:
        """Fix the mask before the last stage."""
        if stage.name == "tune":
            self.settle()
        super().begin_stage(stage)

    @property
    def settled(self) -> bool:
        """In the last stage."""
        return self.stage == "tune"
