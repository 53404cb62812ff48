"""Learned step size quantisation: rows trained as the integers that they will be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig, RowEmbedding
from featemb.parts import Concat, OffsetAddress
from featemb.parts.fake_quant import FakeQuantRows


@register
@dataclass(frozen=True, kw_only=True)
class LSQ(MethodConfig):
    """Private rows, rounded in training as they are in serving: ``e(f, x) = s q(E[i]) + beta``.

    ``q(w) = clamp(round((w - beta) / s), -2^(b-1), 2^(b-1) - 1)``, with one learned step s and,
    with ``offset``, a learned offset beta a column. Esser et al., "Learned Step Size Quantization",
    ICLR 2020; the offset is LSQ+'s (Bhalgat et al., CVPR Workshops 2020). The rows are an fp32
    table in training; their gradient passes straight through the rounding of numbers that are not
    clipped.
    s starts at ``2 mean |w| / sqrt(2^(b-1) - 1)`` of the initial values.

    Deviations: the learning rate of s is ``step_lr`` times that of the rows *relative to its
    initial value*, since Adam's steps do not shrink with a parameter as small as s. No weight decay
    on s and beta.

    An id never seen in training gets its initial row, rounded.

    Bytes: ``N ceil(D b / 8) + 4``, ``4 D`` more with the offset; an fp32 table in training. The
    format is the method's own: ``freeze`` ignores its codec.

    Attributes:
        bits: b: 8, 4 or 2.
        offset: whether there is a learned offset a column.
        step_lr: learning rate of s, as a multiple of ``lr s_0``.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "lsq"
    summary: ClassVar[str] = "private rows, trained as integers with a learned step"
    paper: ClassVar[str] = "Esser et al., ICLR 2020"
    axis: ClassVar[Axis] = "format"
    own_rows: ClassVar[str] = "has a row format of its own"

    bits: int = 8
    offset: bool = tunable(False, choices=(False, True))
    step_lr: float = tunable(1.0, 0.1, 10.0, log=True)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("bits", "8, 4 or 2", self.bits in (8, 4, 2))
        self.require("step_lr", "at least 0 and finite", 0 <= self.step_lr < math.inf)

    def build(self, context: BuildContext) -> LSQEmbedding:
        """Make the table and its step."""
        return LSQEmbedding(context, self)


class LSQEmbedding(RowEmbedding):
    """Fake-quantised rows (see `LSQ`)."""

    smooth = False
    config: LSQ

    def __init__(self, context: BuildContext, config: LSQ) -> None:
        cardinalities = context.schema.cardinalities
        init = config.init if context.init is None else context.init
        # half of init is the mean magnitude of the initial values
        first_step = max(init, 1e-8) / math.sqrt(max(1, 2 ** (config.bits - 1) - 1))
        size = context.dim if config.offset else 0
        rows = FakeQuantRows(
            rows=context.table(sum(cardinalities), context.dim, config.init),
            step=nn.Parameter(torch.full((1, 1), first_step, device=context.device)),
            offset=nn.Parameter(torch.zeros(size, device=context.device))
            if size
            else torch.zeros(0, device=context.device),
            bits=config.bits,
        )
        address = OffsetAddress.of(cardinalities)
        super().__init__(context, config, address=address, rows=rows, combine=Concat())
        self.first_step = first_step

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The rows; then step and offset, at a rate of the step's own size."""
        small = [p for name, p in self.named_parameters() if not name.endswith("weight")]
        rate = lr * self.first_step * self.config.step_lr
        own = {"params": small, "lr": rate, "weight_decay": 0.0}
        return [{"params": [self.source.get_parameter("rows.rows.weight")], "lr": lr}, own]
