"""Widths searched among candidates, by weights learned on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.methods.hash import Hash
from featemb.narrowing import NarrowedEmbedding
from featemb.parts import OffsetAddress, Source
from featemb.parts.candidates import Candidates
from featemb.projecting import write_feature
from featemb.stage import Stage
from featemb.widths import WidthBytes, Widths


@register
@dataclass(frozen=True, kw_only=True)
class AutoDim(MethodConfig):
    """Tables of all candidate widths are trained together; each feature keeps one of them.

    ``e(f, x) = sum_k p_fk norm_k(T_k[i] W_fk + b_fk)``, ``i = offset_f + x``, candidates
    ``k = 2, 4, 8, ..., D``, T_k ``[N, k]``, W_fk ``[k, D]``, norm_k batch normalisation without a
    scale and shift. p is a Gumbel softmax of alpha ``[F, K]`` whose temperature falls:
    ``softmax((log softmax(alpha) + g) / tau)``, ``tau = max(0.01, 1 - rate t)`` after t steps. In
    the end ``e(f, x) = E_f[x] W_f + b_f``. Zhao et al., "AutoDim: Field-aware Embedding Dimension
    Search in Recommender Systems", WWW 2021 (2006.14827).

    Stages: ``search``, in which every step on a training batch is followed by one of alpha alone on
    a held-out batch (first order); ``select``, which needs no evaluation: each feature's candidate
    of the largest alpha, within the limit; ``retrain``, the narrow tables without the norms and the
    rewound model, from new initial values, or with ``start=inherit`` on from the trained model.
    During ``search`` eval mode answers with ``p = softmax(alpha)`` and the running statistics;
    `freeze` before ``retrain`` selects on a copy, and folds the running norms into W_f and b_f, as
    ``start=inherit`` does.

    The paper has no budget. Here features start at the smallest candidate and are widened by the
    largest gain of ``log softmax(alpha)`` for a byte (the concave hull of each feature's
    candidates, which is the greedy solution of the knapsack problem), beyond the largest alpha too
    while bytes are left, at the smallest loss.

    An id never seen in training has the vector of its first values, by a W_f that others have
    trained.

    Deviations: the budget; the last widening stops at the column that does not fit, which the
    feature's most frequent ids alone get, so that one feature is between two candidates and the
    limit is met to the number (see `featemb.widths`). Features of width D, and those where a
    projection costs more than it saves, have no map. The norms are folded in, where the paper's
    code drops them. alpha has the run's optimizer.

    Bytes: ``4 sum_f (n_f w_f + [w_f < D] (w_f + 1) D)``, and 4 (h + D) for the column of h ids. In
    the stage ``search`` the tables have ``4 N (2 + 4 + ... + D)``: nearly twice the plain table.

    Attributes:
        limit: most serving bytes; None is a tenth of the plain table's, or the floor where that
            is larger.
        rate: see above.
        alpha_lr: learning rate of alpha.
        start: "initial" or "inherit", see above.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "autodim"
    summary: ClassVar[str] = "widths searched among candidates by weights on held-out batches"
    paper: ClassVar[str] = "Zhao et al., WWW 2021"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "replaces its tables by the widths that it chooses"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    rate: float = tunable(5e-5, 1e-6, 1e-2, log=True)
    alpha_lr: float = tunable(1e-3, 1e-4, 1e-1, log=True)
    start: str = tunable("initial", choices=("initial", "inherit"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("rate", "finite and at least 0", 0 <= self.rate < math.inf)
        self.require("alpha_lr", "finite and above 0", 0 < self.alpha_lr < math.inf)
        known = self.start in ("initial", "inherit")
        self.require("start", "'initial' or 'inherit'", known)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a row of one number has no other candidate."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> AutoDimEmbedding:
        """Make the tables of all candidates."""
        return AutoDimEmbedding(context, self)


class AutoDimEmbedding(NarrowedEmbedding):
    """Tables of all candidate widths until one is selected for each feature."""

    config: AutoDim
    sizes_follow_values: ClassVar[bool] = True
    smooth: ClassVar[bool] = False

    def __init__(self, context: BuildContext, config: AutoDim) -> None:
        inherits = config.start == "inherit"
        wide = _candidates(context, config.init)
        super().__init__(context, config, wide, init=config.init, bias=True, inherits=inherits)
        self.size = WidthBytes(context.schema, context.dim, context.codec, bias=True)
        self.limit = self.size.of_limit(config.limit, candidate_widths(context.dim)[0])
        self.choose()  # an impossible limit is refused here

    def wide(self, context: BuildContext) -> Source:
        """Make the tables of all candidates."""
        return _candidates(context, self.config.init)

    @property
    def supernet(self) -> Candidates:
        """The part with all candidates, before the last stage."""
        assert isinstance(self.source, Candidates)
        return self.source

    def stages(self) -> tuple[Stage, ...]:
        """The search, the selection, the narrow tables."""
        rewinds = self.config.start == "initial"
        return (
            Stage("search", held_out=True),
            Stage("select", kind="search"),
            Stage("retrain", weights="initial" if rewinds else "keep"),
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The weights on training batches, alpha on held-out ones."""
        if self.narrow:
            return super().param_groups(lr)
        alpha = self.supernet.alpha
        others = [one for one in self.parameters() if one is not alpha]
        decided = {"params": [alpha], "lr": self.config.alpha_lr, "weight_decay": 0.0}
        return [{"params": others, "lr": lr}, {**decided, "split": "held_out"}]

    def after_step(self, step: int) -> None:
        """Lower the temperature."""
        if not self.narrow:
            self.supernet.tau.fill_(max(0.01, 1 - self.config.rate * step))

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Select the widths; no evaluation is needed."""
        self.choose_widths()

    def choose(self) -> Widths:
        """Select each feature's width by its alpha, within the limit."""
        alpha = self.supernet.alpha.detach()
        chances = torch.zeros_like(alpha, device="cpu") if alpha.is_meta else alpha.double().cpu()
        widths = candidate_widths(self.dim)
        edges = []
        for feature, log in enumerate(chances.log_softmax(1).tolist()):
            cost = [self.size.of(feature, width) for width in widths]
            for gain, first, last in _hull(cost, log):
                edges.append((-gain, cost[last] - cost[first], feature, first, last))
        order = [
            feature
            for _, _, feature, first, last in sorted(edges)
            for _ in range(widths[last] - widths[first])
        ]
        return self.size.fit(self.limit, order, self.config.name, smallest=widths[0])

    def inherit(self, narrow: Source, widths: Widths) -> None:
        """Write each feature's candidate of the largest alpha that is no wider; fold its norm."""
        candidates = candidate_widths(self.dim)
        cardinalities = list(self.schema.cardinalities)
        for feature, width in enumerate(widths.sizes):
            number = max(i for i, one in enumerate(candidates) if one <= width)
            number = int(self.supernet.alpha[feature, : number + 1].argmax())
            table = self.supernet.tables[number].get_parameter("weight").detach()
            rows = torch.split(table, cardinalities)[feature]
            maps, bias = self.supernet.folded(feature, number)
            write_feature(narrow, widths, feature, rows, maps, bias)


def candidate_widths(dim: int) -> list[int]:
    """Return 2, 4, 8, ... below D, and D."""
    return [*(1 << power for power in range(1, (dim - 1).bit_length()) if 1 << power < dim), dim]


def _hull(cost: list[int], value: list[float]) -> list[tuple[float, int, int]]:
    """Return the edges of the upper concave hull: gain a byte, first and last point.

    Costs that do not grow end it: such widths are the full one (see `WidthBytes`).
    """
    edges: list[tuple[float, int, int]] = []
    at, last = 0, len(cost) - 1
    while at < last:
        slopes = [
            ((value[to] - value[at]) / max(cost[to] - cost[at], 1), to)
            for to in range(at + 1, last + 1)
        ]
        gain, to = max(slopes, key=lambda one: (one[0], -one[1]))
        edges.append((gain, at, to))
        at = to
    return edges


def _candidates(context: BuildContext, init: float) -> Candidates:
    """Make all tables, and maps uniform in ``+-sqrt(3 / k)``; alpha, biases at 0."""
    sizes, dim, device = context.schema.cardinalities, context.dim, context.device
    widths = candidate_widths(dim)
    tables = [context.table(sum(sizes), width, init) for width in widths]
    maps = torch.empty(
        len(sizes), sum(widths), dim, device="meta" if device.type == "meta" else None
    )
    if device.type != "meta":
        maps.uniform_(-1, 1, generator=context.generator())
        for part, width in zip(torch.split(maps, widths, dim=1), widths, strict=True):
            part.mul_(math.sqrt(3 / width))
    shape = (len(widths), dim)

    def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    return Candidates(
        address=OffsetAddress.of(sizes),
        tables=tables,
        maps=nn.Parameter(maps.to(device)),
        biases=nn.Parameter(zeros(len(sizes), *shape)),
        alpha=nn.Parameter(zeros(len(sizes), len(widths))),
        mean=zeros(*shape),
        variance=zeros(*shape) + 1,
        seed=context.seed_tensor(),
        draws=zeros(dtype=torch.int64),
        tau=zeros() + 1,
        candidates=tuple(widths),
    )
