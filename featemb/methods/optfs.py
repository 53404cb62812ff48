"""OptFS: which ids get a row is learned by gates, then the kept rows are trained anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.config import register, tunable
from featemb.frequency import expected_counts
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.parts import Concat, Lookup
from featemb.parts.gated import GatedRows
from featemb.parts.masked import keep_largest
from featemb.pruning import PrunedEmbedding, default_kept
from featemb.stage import Stage

_PENALTIES = ("all", "batch")


@register
@dataclass(frozen=True, kw_only=True)
class OptFS(MethodConfig):
    """A learned gate a row; the K rows of the largest gates are kept and trained from the start.

    Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction", WWW 2023 (2301.10909).
    ``e(f, x) = gate_i E[i]``, ``i = offset_f + x``,
    ``gate_i = sigmoid(g_i tau) / sigmoid(g_0)``, one number g_i an id, all of which start at
    ``g_0 = start``. The sharpness tau grows from 1 to ``temperature`` as
    ``temperature^min(1, t / anneal_steps)``, t the steps made.

    Stages:
        ``search``: E, g and the network, loss plus ``strength / N sum_i sigmoid(g_i tau)`` over all
            N ids, or with ``penalty=batch`` over the distinct ids of the batch. In eval mode, and
            frozen, the K rows of largest g are kept, times their gates.
        ``retrain``: everything is rewound to its initial value but the mask of the K rows of
            largest g; no gates, a new optimizer.

    K is met exactly: the sign of g_i, by which the paper keeps rows, does not decide. Ids whose g
    never moved come last; of equal g the ids of larger training count are kept (without counts see
    `featemb.frequency`), so that an untrained layer keeps the frequent ids.

    An id never seen in training is pruned (zeros), unless K exceeds the number of seen ids: then it
    reads its row as it was initialised.

    Bytes: ``4 D K`` and the index of the kept ids in its smallest form (`featemb.parts.kept`). In
    training the full table, and 5 bytes an id for gate and mask.

    Deviations: weights are rewound to the start, not to an early epoch; tau grows by step, not by
    epoch, and less; retraining reads ``E[i]`` without the factor ``1 / sigmoid(g_0)``; K is exact;
    the search is of rows alone, the paper's interactions of features are left to the model; no
    weight decay reaches g.

    Attributes:
        kept: K; None takes a tenth of all rows.
        strength: of the penalty; N times the paper's lambda. With Adam it decides between frequent
            and rare ids: a g falls unless the loss's gradients are large against the penalty's.
        penalty: "all", O(N) a step; "batch", O(ids of the batch), which weighs rare ids more.
        temperature: tau at its end; the paper's 200 to 10,000 end with gates of 0 or 1, which a
            choice by rank does not need.
        anneal_steps: steps until then; about those of the whole search.
        start: g_0.
        gate_lr: learning rate of g; None takes that of the table.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "optfs"
    summary: ClassVar[str] = "a learned gate an id; rows of the largest gates kept and retrained"
    paper: ClassVar[str] = "Lyu et al., WWW 2023"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    strength: float = tunable(2.0, 0.1, 20.0, log=True)
    penalty: str = tunable("all", choices=("all", "batch"))
    temperature: float = tunable(10.0, 1.0, 1000.0, log=True)
    anneal_steps: int = tunable(1000, 100, 10_000, log=True)
    start: float = tunable(0.0, -2.0, 2.0)
    gate_lr: float | None = tunable(None, choices=(None, 1e-4, 1e-3, 1e-2))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("strength", "finite and at least 0", 0 <= self.strength < float("inf"))
        self.require("penalty", f"one of {', '.join(_PENALTIES)}", self.penalty in _PENALTIES)
        self.require("temperature", "finite and at least 1", 1 <= self.temperature < float("inf"))
        self.require("anneal_steps", "at least 1", self.anneal_steps >= 1)
        self.require("start", "between -10 and 10", -10 <= self.start <= 10)
        positive = self.gate_lr is None or 0 < self.gate_lr < float("inf")
        self.require("gate_lr", "finite and above 0", positive)

    def build(self, context: BuildContext) -> OptFSEmbedding:
        """Make table and gates."""
        return OptFSEmbedding(context, self)


class OptFSEmbedding(PrunedEmbedding):
    """A full table with gates, then the rows that they chose.

    Penalty and sharpness need the calls of the loop: ``penalty`` and ``after_step``.
    """

    config: OptFS
    architecture = ("source.rows.keep", "source.rows.gates.weight")

    def __init__(self, context: BuildContext, config: OptFS) -> None:
        kept = default_kept(sum(context.schema.cardinalities), config.kept)
        super().__init__(context, config, "rows", kept, config.init)
        plain = self.masked
        gated = GatedRows(
            rows=plain.rows,
            keep=plain.keep,
            kept=plain.kept,
            gates=context.table(plain.keep.shape[0], 1, 0.0, config.start),
            steps=torch.zeros((), dtype=torch.int64, device=context.device),
            temperature=config.temperature,
            anneal=config.anneal_steps,
            start=config.start,
        )
        address = self.source.get_submodule("address")
        self.source = Lookup(address=address, rows=gated, combine=Concat())

    @property
    def gated(self) -> GatedRows:
        """The part that holds table, gates and mask."""
        assert isinstance(self.masked, GatedRows)
        return self.masked

    @property
    def settled(self) -> bool:
        """In the last stage."""
        return self.stage == "retrain"

    def stages(self) -> tuple[Stage, ...]:
        """All rows with gates, then the kept ones from the start."""
        return (Stage("search"), Stage("retrain", weights="initial"))

    def begin_stage(self, stage: Stage) -> None:
        """Fix the mask before the last stage."""
        if stage.name == "retrain":
            self.settle()
        self.gated.steps.zero_()
        super().begin_stage(stage)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The table and, while they are learned, the gates, which no weight decay reaches."""
        table: dict[str, Any] = {"params": [self.weight], "lr": lr}
        if self.settled:
            return [table]
        gates = {"params": [self._logits], "lr": self.config.gate_lr or lr, "weight_decay": 0.0}
        return [table, gates]

    def penalty(self) -> Tensor:
        """``strength`` times the sum of the gates, without their scale."""
        if self.settled or not self.training:
            return super().penalty()
        logits: Tensor = self._logits
        if self.config.penalty == "batch":
            if self.gated.read is None:
                return super().penalty()
            logits = self.gated.gates(torch.unique(self.gated.read))
        share = self.config.strength / self._logits.numel()
        return share * torch.sigmoid(logits * self.gated.tau().to(logits)).sum()

    def after_step(self, step: int) -> None:
        """Count the steps, on which tau depends."""
        if not self.settled:
            self.gated.steps += 1

    def importance(self) -> Tensor:
        """Return g, of ids that were never read: minus infinity."""
        logits = self._logits
        return torch.where(logits == self.config.start, -torch.inf, logits)

    def chosen(self) -> Tensor:
        """Return the mask of the K rows of largest g."""
        scores = self.importance().detach()
        if scores.is_meta:
            return keep_largest(scores, self.masked.kept)
        counts = torch.from_numpy(expected_counts(self.schema)).to(scores.device)
        return keep_largest(scores, self.masked.kept, prefer=counts)

    @property
    def _logits(self) -> nn.Parameter:
        return self.gated.gates.get_parameter("weight")
