"""Low-precision training: rows exist as 8- or 16-bit numbers, in training and in serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, FeatureEmbedding, MethodConfig, RowEmbedding
from featemb.parts import Concat, OffsetAddress
from featemb.quantized import FLOATS, INTEGERS, QuantizedTable

OPTIMIZERS = ("adagrad", "adam", "rmsprop", "sgd")


@register
@dataclass(frozen=True, kw_only=True)
class LowPrecision(MethodConfig):
    """Private rows that exist in 8 or 16 bits only: ``e(f, x) = step code[o_f + x]``.

    A step reads the rows of its batch as fp32, updates them, and rounds them at random to one of
    their two neighbours in the format, so that updates far below a step of the format count in the
    mean (Zhang et al., "Training with Low-precision Embedding Tables", NeurIPS SysML workshop
    2018; Gupta et al., ICML 2015). There is no fp32 copy, not even in training. Integers have one
    fixed step for the table, ``reach / 2^(bits - 1)``, and saturate; floats have no step.

    Deviations: each element is rounded by a draw of its own, a hash of (key, count of writes, row,
    column); and the rows have their own optimizer, whose state is one number a row, since two
    moments an element would take more than the rows.

    An id never seen in training gets its initial row, rounded.

    Bytes: ``N D b / 8`` (+ 4 for integers), in serving; in training 16 more, and ``4 N`` of
    optimizer state with ``adagrad``, ``8 N`` with ``rmsprop``, ``8 N D`` with ``adam``, 0 with
    ``sgd``. While the layer is made its fp32 initial rows exist. The format is the method's own:
    ``freeze`` ignores its codec.

    Attributes:
        rows: "int8", "int16", "fp16" or "bf16".
        reach: largest magnitude that integers hold, ``init`` at least; numbers beyond become it.
        optimizer: "rmsprop" (two numbers a row), "adagrad" (one accumulator a row), "adam" or
            "sgd"; each touches the rows of the batch alone.
        rate: learning rate of the rows, as a multiple of the run's.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "lowprec"
    summary: ClassVar[str] = "private rows, trained in 8 or 16 bits without an fp32 copy"
    paper: ClassVar[str] = "Zhang et al., 2018 (arXiv:1803.04884)"
    axis: ClassVar[Axis] = "format"
    own_rows: ClassVar[str] = "has a row format of its own"

    rows: str = "int8"
    reach: float = tunable(1.0, 0.1, 10.0, log=True)
    optimizer: str = tunable("rmsprop", choices=("rmsprop", "adagrad", "adam", "sgd"))
    rate: float = tunable(1.0, 0.1, 10.0, log=True)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        formats = (*INTEGERS, *FLOATS)
        self.require("rows", f"one of {', '.join(formats)}", self.rows in formats)
        self.require("optimizer", f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS)
        self.require("reach", "above 0 and finite", 0 < self.reach < float("inf"))
        self.require("rate", "above 0 and finite", 0 < self.rate < float("inf"))

    def build(self, context: BuildContext) -> LowPrecisionEmbedding:
        """Make the rows."""
        return LowPrecisionEmbedding(context, self)


class LowPrecisionEmbedding(RowEmbedding):
    """Rows of a low-precision format (see `LowPrecision`)."""

    config: LowPrecision

    def __init__(self, context: BuildContext, config: LowPrecision) -> None:
        cardinalities = context.schema.cardinalities
        init = config.init if context.init is None else context.init
        weight = context.table(sum(cardinalities), context.dim, config.init).weight.detach()
        bits = INTEGERS.get(config.rows, 0)
        shape = (1, 1) if bits else (0,)
        size = max(config.reach, init) / 2 ** max(0, bits - 1)
        step = torch.full(shape, size, device=context.device)
        rows = QuantizedTable(weight, config.rows, step, context.seed)
        address = OffsetAddress.of(cardinalities)
        super().__init__(context, config, address=address, rows=rows, combine=Concat())

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """One group, of the configured optimizer."""
        return [row_group(self, self.config.optimizer, lr * self.config.rate)]


def row_group(layer: FeatureEmbedding, optimizer: str, lr: float) -> dict[str, Any]:
    """Group of all parameters of a layer, for one of `OPTIMIZERS`."""
    group = {"params": layer.own_parameters(), "lr": lr, "optimizer": f"row_{optimizer}"}
    return group | ({"rowwise": True} if optimizer == "adagrad" else {})
