"""PEP: learned soft thresholds choose the numbers that are trained anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.parts import Concat, Lookup
from featemb.parts.soft import SoftRows
from featemb.pruning import PrunedEmbedding, default_kept
from featemb.stage import Stage

_GRAINS = ("global", "dimension", "row", "weight")


@register
@dataclass(frozen=True, kw_only=True)
class PEP(MethodConfig):
    """Soft thresholds are learned with the table; the K numbers furthest above theirs are kept.

    Liu et al., "Learnable Embedding Sizes for Recommender Systems", ICLR 2021 (2101.07577).
    ``e(f, x) = sign(v) relu(|v| - sigmoid(s))``, ``v = E[offset_f + x]``, with one s for all
    numbers, a column, a row or a number.

    Stages:
        ``search``: E, s and the network. In eval mode, and frozen, the K numbers of largest
            ``|v| - sigmoid(s)`` are kept, shrunk by their threshold.
        ``choose``: fixes the mask of these numbers.
        ``retrain``: everything is rewound to its initial value but the mask; no thresholds, a new
            optimizer.

    s starts at ``threshold``, where its gradient ``-sign(v) sigmoid'(s)`` is small but not zero:
    with Adam, whose steps do not depend on a gradient's size, it moves from the first step on. At
    the -150 of a published port the sigmoid is exactly zero in fp32, and so is the gradient. Weight
    decay of the run reaches s too, and raises the thresholds, as in the authors' code.

    An id never seen in training reads zeros, mostly: its initial values are among the smallest.

    Bytes: ``4 K`` and the index of the kept numbers in its smallest form (`featemb.parts.kept`). In
    training up to twice the full table.

    Deviations: K is met exactly, where the paper stops at the first evaluation that is sparse
    enough; the network too is rewound to its start.

    Attributes:
        kept: K; None takes a tenth of all.
        grain: "global", "dimension", "row" or "weight": what has an s of its own.
        threshold: s at the start.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "pep"
    summary: ClassVar[str] = "learned soft thresholds choose the numbers; these are trained anew"
    paper: ClassVar[str] = "Liu et al., ICLR 2021"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    grain: str = tunable("weight", choices=("weight", "row", "dimension", "global"))
    threshold: float = tunable(-7.0, -12.0, -2.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the words and that thresholds can move."""
        super().__post_init__()
        self.require("grain", f"one of {', '.join(_GRAINS)}", self.grain in _GRAINS)
        self.require("threshold", "between -20 and 10", -20 <= self.threshold <= 10)

    def build(self, context: BuildContext) -> PEPEmbedding:
        """Make table and thresholds."""
        return PEPEmbedding(context, self)


class PEPEmbedding(PrunedEmbedding):
    """A full table with thresholds, then the numbers that they chose."""

    config: PEP
    architecture = ("source.rows.keep",)

    def __init__(self, context: BuildContext, config: PEP) -> None:
        total, dim = sum(context.schema.cardinalities), context.dim
        super().__init__(
            context, config, "weights", default_kept(total * dim, config.kept), config.init
        )
        plain, by_row = self.masked, config.grain in ("row", "weight")
        width = dim if config.grain in ("dimension", "weight") else 1
        soft = SoftRows(
            rows=plain.rows,
            keep=plain.keep,
            kept=plain.kept,
            thresholds=context.table(total if by_row else 1, width, 0.0, config.threshold),
            by_row=by_row,
        )
        address = self.source.get_submodule("address")
        self.source = Lookup(address=address, rows=soft, combine=Concat())

    @property
    def soft(self) -> SoftRows:
        """The part that holds table, thresholds and mask."""
        assert isinstance(self.masked, SoftRows)
        return self.masked

    @property
    def settled(self) -> bool:
        """Once the numbers are chosen."""
        return self.stage in ("choose", "retrain")

    def importance(self) -> Tensor:
        """Return how far each magnitude is above its threshold."""
        return self.soft.margins()

    def stages(self) -> tuple[Stage, ...]:
        """All numbers through thresholds, then the kept ones from the start."""
        return (Stage("search"), Stage("choose", "search"), Stage("retrain", weights="initial"))

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Fix the mask; it needs no evaluation."""
        self.settle()
        self.begin_stage(stage)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The table and, while they are learned, the thresholds."""
        thresholds = [] if self.settled else list(self.soft.thresholds.parameters())
        return [{"params": [self.weight, *thresholds], "lr": lr}]
