"""ALPT: rows trained as integers, with steps that are trained too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch

from featemb.adaptive import AdaptiveTable
from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig, RowEmbedding
from featemb.methods.lowprec import OPTIMIZERS, row_group
from featemb.parts import Concat, OffsetAddress

GRAINS = ("row", "feature", "table")


@register
@dataclass(frozen=True, kw_only=True)
class ALPT(MethodConfig):
    """Private integer rows with trained steps: ``e(f, x) = s_i code[i]``, ``i = o_f + x``.

    Adaptive low-precision training (Li et al., AAAI 2023). A training step reads the rows of its
    batch as fp32 and updates them; moves the steps s of these rows by the gradient of the rounding
    (learned step size, Esser et al., ICLR 2020); and rounds the rows at random to multiples of
    the new steps. There is no fp32 copy of the rows, not even in training.

    Deviations: the gradient of s takes the rows' gradients of the same pass, at the updated rows,
    where the paper makes a second pass through the whole network; its scale
    ``1 / sqrt(U D (2^(b-1) - 1))`` counts the U rows that the batch touched, not its samples. Each
    element is rounded by a draw of its own. s stays above ``2^-24``. The rows have their own
    optimizer (see `lowprec`). ``grain`` "feature" and "table" are additions.

    An id never seen in training gets its initial row, rounded.

    Bytes: ``N D b / 8 + 4 G``, G steps, in serving; in training 16 more, ``8 G`` more with
    ``step_optimizer=adam``, and ``8 N`` of optimizer state with ``rmsprop``, ``4 N`` with
    ``adagrad``. The format is the method's own: ``freeze`` ignores its codec.

    Attributes:
        bits: b: 8 or 16.
        grain: what has one step: "row", "feature" or "table".
        reach: the initial steps are ``reach / 2^(b-1)``: the rows may grow to this magnitude,
            ``init`` at least, before their steps must.
        step_lr: learning rate of the steps; the run's has no part in it.
        step_optimizer: "adam" or "sgd".
        optimizer: of the rows: "rmsprop" (two numbers a row), "adagrad" (one accumulator a row),
            "adam" or "sgd".
        rate: learning rate of the rows, as a multiple of the run's.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "alpt"
    summary: ClassVar[str] = "private rows, trained as integers with a trained step a row"
    paper: ClassVar[str] = "Li et al., AAAI 2023"
    axis: ClassVar[Axis] = "format"
    own_rows: ClassVar[str] = "has a row format of its own"

    bits: int = 8
    grain: str = tunable("row", choices=("row", "feature", "table"))
    reach: float = tunable(1.0, 0.1, 10.0, log=True)
    step_lr: float = tunable(2e-5, 1e-6, 1e-3, log=True)
    step_optimizer: str = tunable("adam", choices=("adam", "sgd"))
    optimizer: str = tunable("rmsprop", choices=("rmsprop", "adagrad", "adam", "sgd"))
    rate: float = tunable(1.0, 0.1, 10.0, log=True)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("bits", "8 or 16", self.bits in (8, 16))
        self.require("grain", f"one of {', '.join(GRAINS)}", self.grain in GRAINS)
        self.require("step_optimizer", "adam or sgd", self.step_optimizer in ("adam", "sgd"))
        self.require("optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS)
        self.require("reach", "above 0 and finite", 0 < self.reach < float("inf"))
        self.require("rate", "above 0 and finite", 0 < self.rate < float("inf"))
        self.require("step_lr", "at least 0 and finite", 0 <= self.step_lr < float("inf"))

    def build(self, context: BuildContext) -> ALPTEmbedding:
        """Make the rows and their steps."""
        return ALPTEmbedding(context, self)


class ALPTEmbedding(RowEmbedding):
    """Integer rows with trained steps (see `ALPT`)."""

    config: ALPT

    def __init__(self, context: BuildContext, config: ALPT) -> None:
        cardinalities = context.schema.cardinalities
        init = config.init if context.init is None else context.init
        weight = context.table(sum(cardinalities), context.dim, config.init).weight.detach()
        starts = tuple(accumulate((0, *cardinalities[:-1])))
        by_feature = config.grain == "feature" and len(starts) > 1
        groups = {"row": sum(cardinalities), "feature": len(starts), "table": 1}[config.grain]
        first = max(config.reach, init) / 2 ** (config.bits - 1)
        rows = AdaptiveTable(
            weight,
            f"int{config.bits}",
            torch.full((groups, 1), first, device=context.device),
            context.seed,
            starts=starts if by_feature else (),
            step_lr=config.step_lr,
            adam=config.step_optimizer == "adam",
        )
        address = OffsetAddress.of(cardinalities)
        super().__init__(context, config, address=address, rows=rows, combine=Concat())

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group, of the configured optimizer; the steps are moved by the table."""
        return [row_group(self, self.config.optimizer, lr * self.config.rate)]
