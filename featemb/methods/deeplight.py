"""DeepLight: the table's smallest numbers are set to zero step by step, more and more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.pruning import PrunedEmbedding, default_kept
from featemb.stage import Stage

_NEARLY = 0.01


@register
@dataclass(frozen=True, kw_only=True)
class DeepLight(MethodConfig):
    """The plain table is trained; then its smallest numbers are zeroed, slowly, while it trains on.

    Deng et al., "DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR Predictions
    in Ad Serving", WSDM 2021 (2002.06987); the part of it that prunes embeddings.
    ``e(f, x) = E[offset_f + x]``. After every ``every`` steps of the second stage the numbers of
    least magnitude of the whole table are set to zero, so that a share
    ``s(t) = (1 - K / (N D)) (1 - 0.01^(t / ramp))`` of all is; they may grow again.

    Stages:
        ``train``: the full table.
        ``prune``: weights and optimizer state go on; numbers are zeroed as above. The moments of
            zeroed numbers are left alone, as in the authors' code.
        ``tune``: the mask of the K largest numbers is fixed, a new optimizer; ``tune=false`` leaves
            it out.

    In eval mode, and frozen, exactly the K largest numbers of the moment are kept, so that no score
    is better for being measured before the pruning has come to its end.

    The schedule counts steps: where `prune` ends, or is stopped early, before about ``ramp`` steps,
    `tune` cuts all that is left at once. A ``ramp`` of about an epoch comes to its end.

    An id never seen in training mostly reads zeros: its initial values are among the smallest.

    Bytes: ``4 K`` and the index of the kept numbers in its smallest form (`featemb.parts.kept`).
    A pruning event costs O(N D), that is O(N D / every) a step.

    Deviations: the last stage; the paper's ``0.99^(t / 100)`` is ``ramp=45821``, a schedule for
    millions of rows; the network's own weights are not pruned.

    Attributes:
        kept: K; None takes a tenth of all.
        every: steps between two prunings.
        ramp: steps after which the share of zeros is within 1% of its end.
        tune: whether the last stage is run.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "deeplight"
    summary: ClassVar[str] = "full table in training; its smallest numbers are zeroed step by step"
    paper: ClassVar[str] = "Deng et al., WSDM 2021"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    every: int = tunable(10, 1, 100, log=True)
    ramp: int = tunable(1000, 100, 10_000, log=True)
    tune: bool = tunable(True, choices=(True, False))
    init: float = tunable(0.01, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the schedule."""
        super().__post_init__()
        self.require("every", "at least 1", self.every >= 1)
        self.require("ramp", "at least 1", self.ramp >= 1)

    def build(self, context: BuildContext) -> DeepLightEmbedding:
        """Make the full table."""
        return DeepLightEmbedding(context, self)


class DeepLightEmbedding(PrunedEmbedding):
    """A full table that is thinned out while it trains."""

    config: DeepLight
    memory_parts: ClassVar[dict[str, str]] = {"steps": "counters"}
    steps: Tensor

    def __init__(self, context: BuildContext, config: DeepLight) -> None:
        numbers = sum(context.schema.cardinalities) * context.dim
        super().__init__(
            context, config, "weights", default_kept(numbers, config.kept), config.init
        )
        steps = torch.zeros((), dtype=torch.int64, device=context.device)
        self.register_buffer("steps", steps)

    def importance(self) -> Tensor:
        """Magnitudes."""
        return self.weight.abs()

    def stages(self) -> tuple[Stage, ...]:
        """The full table, gradual pruning, the pruned table."""
        stages = (Stage("train"), Stage("prune", optimizer="keep"))
        return (*stages, Stage("tune")) if self.config.tune else stages

    def begin_stage(self, stage: Stage) -> None:
        """Begin to count, or fix the mask."""
        if stage.name == "prune":
            self.steps.zero_()
        if stage.name == "tune":
            self.settle()
        super().begin_stage(stage)

    @property
    def settled(self) -> bool:
        """In the last stage."""
        return self.stage == "tune"

    def sparsity(self) -> float:
        """Share of zeros wanted after the steps made."""
        end = 1 - self.masked.kept / self.weight.numel()
        progress = int(self.steps) / self.config.ramp
        return end * (1.0 - float(_NEARLY**progress))

    def after_step(self, step: int) -> None:
        """Zero the smallest numbers, every few steps."""
        if self.stage != "prune":
            return
        self.steps += 1
        if int(self.steps) % self.config.every:
            return
        with torch.no_grad():
            magnitude = self.weight.abs().reshape(-1)
            count = int(self.sparsity() * magnitude.numel())
            if count:
                cut = magnitude.kthvalue(count).values
                self.weight.masked_fill_(self.weight.abs() <= cut, 0.0)
