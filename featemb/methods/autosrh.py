"""AutoSrh: gates for groups of ids tell which numbers of the table are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from featemb.config import register, tunable
from featemb.frequency import expected_counts
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.parts import Concat, Lookup
from featemb.parts.grouped import GroupedRows
from featemb.pruning import PrunedEmbedding, default_kept
from featemb.schema import Schema
from featemb.stage import Stage

_MOST_GROUPS = 256
_TINY = 1e-8


@register
@dataclass(frozen=True, kw_only=True)
class AutoSrh(MethodConfig):
    """Gates for (frequency group, column), learned on held-out batches; then pruning by magnitude.

    Kong et al., "AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data
    Prediction", TKDE 35(7), 2023. ``e(f, x) = alpha[g(i)] * E[i]``, ``i = offset_f + x``: all ids,
    in the order of their training counts, are cut into G groups g of about as many ids each, ids of
    one count together; alpha ``[G, D]`` starts at 1 and stays between 0 and 1.

    Stages:
        ``warm``: E and the network.
        ``search``: E alone on training batches; after each step alpha on a held-out batch, by plain
            SGD on loss plus ``l1 sum alpha``, the gradient of each group divided by its mean
            magnitude. First order.
        ``retrain``: E and the network with alpha fixed, a new optimizer.
        ``tune``: alpha is multiplied into E; the mask of the K numbers of largest magnitude is
            fixed, a new optimizer.

    In eval mode, and frozen, exactly the K numbers of largest ``|alpha E|`` are kept.

    A group without an id in a held-out batch has the gradient of the penalty alone, which the
    division makes one of full size however small ``l1`` is: such gates fall by ``alpha_lr`` a step.
    Only ``l1 = 0`` leaves them where they are.

    An id never seen in training keeps initial values, which are among the smallest: mostly zeros.
    Without counts, ids are taken to be numbered by frequency (`featemb.frequency`).

    Bytes: ``4 K`` and the index of the kept numbers in its smallest form (`featemb.parts.kept`);
    alpha is folded in. In training the full table, one byte an id, and ``4 G D``.

    Deviations: the last stage; the published code prunes after the last training step, without
    recovery. Validation rows serve as held-out batches, as in the published code: they choose
    alpha besides the stopping of every stage.

    Attributes:
        kept: K; None takes a tenth of all.
        groups: G, at most 256.
        alpha_lr: learning rate of alpha.
        l1: strength of the penalty on alpha.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "autosrh"
    summary: ClassVar[str] = "gates for frequency groups, then the largest numbers are kept"
    paper: ClassVar[str] = "Kong et al., TKDE 2023"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "prunes its own table"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    groups: int = tunable(6, 2, 20)
    alpha_lr: float = tunable(1e-3, 1e-4, 1e-1, log=True)
    l1: float = tunable(1e-5, 1e-7, 1e-2, log=True)
    init: float = tunable(0.01, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("groups", f"1 to {_MOST_GROUPS}", 1 <= self.groups <= _MOST_GROUPS)
        self.require("alpha_lr", "finite and at least 0", 0 <= self.alpha_lr < float("inf"))
        self.require("l1", "finite and at least 0", 0 <= self.l1 < float("inf"))

    def build(self, context: BuildContext) -> AutoSrhEmbedding:
        """Make table, gates and groups."""
        return AutoSrhEmbedding(context, self)


class AutoSrhEmbedding(PrunedEmbedding):
    """A full table with gates, then its largest numbers."""

    config: AutoSrh

    def __init__(self, context: BuildContext, config: AutoSrh) -> None:
        total, dim, device = sum(context.schema.cardinalities), context.dim, context.device
        super().__init__(
            context, config, "weights", default_kept(total * dim, config.kept), config.init
        )
        plain = self.masked
        group = torch.empty(total, dtype=torch.uint8, device=device)
        if device.type != "meta":
            group.copy_(torch.from_numpy(frequency_groups(context.schema, config.groups)))
        grouped = GroupedRows(
            rows=plain.rows,
            keep=plain.keep,
            kept=plain.kept,
            gates=nn.Parameter(torch.ones(config.groups, dim, device=device)),
            group=group,
        )
        address = self.source.get_submodule("address")
        self.source = Lookup(address=address, rows=grouped, combine=Concat())

    @property
    def grouped(self) -> GroupedRows:
        """The part that holds table, gates and mask."""
        assert isinstance(self.masked, GroupedRows)
        return self.masked

    @property
    def settled(self) -> bool:
        """In the last stage."""
        return self.stage == "tune"

    def importance(self) -> Tensor:
        """Magnitudes, gates multiplied in."""
        return self.grouped.values().abs()

    def stages(self) -> tuple[Stage, ...]:
        """Warm up, learn the gates, train with them, prune."""
        search = Stage("search", held_out=True, network=False)
        return (Stage("warm"), search, Stage("retrain"), Stage("tune"))

    def begin_stage(self, stage: Stage) -> None:
        """Fold the gates in and fix the mask before the last stage."""
        if stage.name == "tune":
            with torch.no_grad():
                self.weight.copy_(self.grouped.values())
                self.grouped.gates.fill_(1.0)
            self.settle()
        super().begin_stage(stage)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The table; in the search also the gates, on held-out batches."""
        table: dict[str, Any] = {"params": [self.weight], "lr": lr}
        if self.stage != "search":
            return [table]
        gates = {
            "params": [self.grouped.gates],
            "lr": self.config.alpha_lr,
            "optimizer": "row_sgd",
            "split": "held_out",
            "weight_decay": 0.0,
        }
        return [table, gates]

    def penalty(self) -> Tensor:
        """``l1 sum alpha`` in the search."""
        if self.stage != "search":
            return super().penalty()
        return self.config.l1 * self.grouped.gates.abs().sum()

    def after_backward(self) -> None:
        """Divide the gradient of each group by its mean magnitude."""
        gradient = self.grouped.gates.grad
        if self.stage == "search" and gradient is not None:
            gradient /= gradient.abs().mean(1, keepdim=True) + _TINY

    def after_step(self, step: int) -> None:
        """Keep the gates between 0 and 1."""
        if self.stage == "search":
            with torch.no_grad():
                self.grouped.gates.clamp_(0.0, 1.0)


def frequency_groups(schema: Schema, groups: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the group of every id, uint8 ``[N]``: 0 is the rarest; one count is one group."""
    counts = expected_counts(schema)
    ordered = np.sort(counts)
    first = np.searchsorted(ordered, counts, "left")  # ids that are rarer
    return (first * groups // len(counts)).astype(np.uint8)
