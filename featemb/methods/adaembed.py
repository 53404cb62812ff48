"""AdaEmbed: a few rows, which in training move to the ids that matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from featemb.config import register, tunable
from featemb.frequency import expected_counts
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.parts.masked import keep_largest
from featemb.parts.owned import NO_ROW, OwnedRows
from featemb.rows import distinct_rows, reset_rows, sum_groups
from featemb.watching import Watching

_INT32 = 2**31
_TINY = 1e-30
_SCORES = ("gradient", "frequency")


@register
@dataclass(frozen=True, kw_only=True)
class AdaEmbed(MethodConfig):
    """The K most important ids own a row, at every moment of training: pruning and regrowing.

    Lai et al., "AdaEmbed: Adaptive Embedding for Large-Scale Recommendation Models", OSDI 2023.
    ``e(f, x) = E[p_i]`` if ``p_i >= 0``, else zeros; ``i = offset_f + x``, E of shape ``[K, D]``, p
    the pointers ``[N]``, of which exactly K are set. Training holds no full table.

    **Importance**: with n_i the lookups of id i in a step and g_i the loss's gradient with respect
    to e_i, summed over them, ``s_i <- s_i + n_i ||g_i||_2 / u``. The unit u of a step is the mean
    of ``||g_i||_2`` over its lookups, so that late steps of small gradients count as much as early
    ones. Ids without a row have a gradient too: that of the zeros which they read.

    **Reallocation**, every ``every`` steps: the ids without a row by falling score, and the ids
    with one by rising score, are paired; a pair in which the first score is above ``1 + margin``
    times the second passes the row on, for ``share K`` pairs at most (one at least). The new owner
    starts from zeros, what it read until then, and from zero optimizer state (of the optimizers of
    `featemb.optim`). Then all scores are multiplied by ``decay``.

    The K rows first belong to the most frequent ids by the training counts; without counts see
    `featemb.frequency`.

    An id never seen in training reads zeros, or its initial values if its count gave it a row
    that no other id has claimed.

    Bytes: ``4 D K`` and the index of the owners in its smallest form (`featemb.parts.kept`). In
    training ``4 D K + 8 N + 8``: a pointer and a score for every id (12 N from 2^31 rows on).

    Deviations: the paper finds when to reallocate by watching how much the ranking changes, and
    estimates the threshold of importance by sampling; here every ``every`` steps, and the exact
    ranking. The formula of the importance, its unit and the margin are ours: the paper names
    gradients and access frequency as its two factors.

    Attributes:
        kept: K; None takes a tenth of all ids.
        every: steps between two reallocations.
        decay: factor of all scores at a reallocation.
        margin: how far a newcomer's score must be above that of the row's owner.
        share: largest part of the rows that one reallocation passes on.
        score: "gradient", or "frequency" to count lookups alone.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "adaembed"
    summary: ClassVar[str] = "rows move in training to the ids that matter most, others read zeros"
    paper: ClassVar[str] = "Lai et al., OSDI 2023"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "moves rows between ids while it trains"
    knob: ClassVar[str] = "kept"

    kept: int | None = None
    every: int = tunable(100, 20, 500, log=True)
    decay: float = tunable(0.9, 0.5, 1.0)
    margin: float = tunable(0.25, 0.0, 1.0)
    share: float = tunable(0.1, 0.01, 1.0, log=True)
    score: str = tunable("gradient", choices=("gradient", "frequency"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("every", "at least 1", self.every >= 1)
        self.require("decay", "above 0 and at most 1", 0 < self.decay <= 1)
        self.require("margin", "finite and at least 0", 0 <= self.margin < float("inf"))
        self.require("share", "above 0 and at most 1", 0 < self.share <= 1)
        self.require("score", f"one of {', '.join(_SCORES)}", self.score in _SCORES)

    def build(self, context: BuildContext) -> AdaEmbedding:
        """Make the rows and give them to the most frequent ids."""
        total, device = sum(context.schema.cardinalities), context.device
        kept = min(max(1, total // 10) if self.kept is None else self.kept, total)
        kind = torch.int32 if kept < _INT32 else torch.int64
        pointers = torch.full((total,), NO_ROW, dtype=kind, device=device)
        if device.type != "meta":
            first = keep_largest(torch.from_numpy(expected_counts(context.schema)), kept)
            pointers[first.to(device)] = torch.arange(kept, dtype=kind, device=device)
        table = context.table(kept, context.dim, self.init)
        return AdaEmbedding(context, self, OwnedRows(rows=table, pointers=pointers))


class AdaEmbedding(Watching):
    """Rows by pointers, which follow the gradients of the layer's answers (see `AdaEmbed`).

    Scores are counted and rows passed on in ``after_step``: in a loop that does not call it, the
    owners stay. Only lookups in training mode through which a gradient came back are counted.

    Attributes:
        scores: s, ``[N]``.
        steps: int64 scalar, the steps made.
    """

    memory_parts: ClassVar[dict[str, str]] = {"scores": "scores", "steps": "counters"}
    config: AdaEmbed
    scores: Tensor
    steps: Tensor

    def __init__(self, context: BuildContext, config: AdaEmbed, owned: OwnedRows) -> None:
        address = OffsetAddress.of(context.schema.cardinalities)
        super().__init__(context, config, Lookup(address=address, rows=owned, combine=Concat()))
        device = context.device
        self.register_buffer("scores", torch.zeros(owned.pointers.shape, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def owned(self) -> OwnedRows:
        """The part that holds rows and pointers."""
        part = self.source.get_submodule("rows")
        assert isinstance(part, OwnedRows)
        return part

    def after_step(self, step: int) -> None:
        """Count the lookups of the step, and pass rows on when it is time."""
        self.steps += 1
        self._count()
        if int(self.steps) % self.config.every == 0:
            self._reallocate()
            self.scores *= self.config.decay

    def _noted(self, ids: Tensor, feature: Tensor | None, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the distinct ids of a lookup, their number and the norm of their gradient."""
        if feature is None:  # [B, F]
            feature = torch.arange(ids.shape[1], device=ids.device)
        numbers = self.source.get_submodule("address")(ids, feature).reshape(-1)
        distinct, order, starts = distinct_rows(numbers, self.scores.numel())
        count = torch.diff(starts, append=starts.new_tensor([numbers.numel()]))
        summed = sum_groups(grad.detach().reshape(numbers.numel(), -1), order, starts)
        # a step that gradient scaling skips has gradients that are not finite
        norm = summed.norm(dim=-1).to(self.scores.dtype).nan_to_num(0.0, 0.0, 0.0)
        return distinct, count.to(norm), norm

    def _count(self) -> None:
        """Add what was seen since the last step to the scores."""
        if not self._seen:
            return
        if self.config.score == "gradient":
            lookups = torch.stack([count.sum() for _, count, _ in self._seen]).sum()
            total = torch.stack([(count * norm).sum() for _, count, norm in self._seen]).sum()
            unit = (total / lookups.clamp(min=1)).clamp(min=_TINY)
        for distinct, count, norm in self._seen:  # distinct ids: the order of adding is fixed
            more = count * norm / unit if self.config.score == "gradient" else count
            self.scores.index_add_(0, distinct, more)
        self._seen.clear()

    @torch.no_grad()
    def _reallocate(self) -> None:
        """Pass the rows of the least important owners on to more important ids."""
        pointers, scores = self.owned.pointers, self.scores
        table = self.owned.rows.get_parameter("weight")
        kept, total = table.shape[0], pointers.numel()
        most = min(max(1, int(self.config.share * kept)), total - kept)
        if not most:
            return
        owns = pointers >= 0
        entering = _best(torch.where(owns, -torch.inf, scores), most)
        place = torch.arange(total, device=scores.device)
        leaving = _best(torch.where(owns, -scores, -torch.inf), most, prefer=place)
        above = scores[entering] > (1 + self.config.margin) * scores[leaving]
        entering, leaving = entering[above], leaving[above]
        rows = pointers[leaving]
        pointers[leaving] = NO_ROW
        pointers[entering] = rows
        reset_rows(table, rows.long(), table.new_zeros(len(rows), table.shape[1]))


def _best(values: Tensor, count: int, prefer: Tensor | None = None) -> Tensor:
    """Return the places of the ``count`` largest values, the largest first (see `keep_largest`)."""
    places = keep_largest(values, count, prefer).nonzero()[:, 0]
    if prefer is not None:
        places = places[prefer[places].argsort(descending=True, stable=True)]
    return places[values[places].argsort(descending=True, stable=True)]
