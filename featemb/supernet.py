"""A supernet of rows and widths: trained, searched, and left with the architecture that was found.

Shape letters: F features, N ids of all features, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featemb.codecs.base import Codec
from featemb.config import tunable
from featemb.errors import BudgetError
from featemb.evolution import Candidate, Evolution, evolve
from featemb.frozen import FrozenEmbedding
from featemb.layer import BuildContext, MethodConfig
from featemb.parts import OffsetAddress
from featemb.parts.supernet import Supernet
from featemb.ragged import RaggedSize, RowOrder, Shape, ragged_source, uniform_shape
from featemb.ragged_space import RaggedSpace, RaggedVariants
from featemb.schema import Schema
from featemb.stage import Stage
from featemb.staging import StagedEmbedding


@dataclass(frozen=True, kw_only=True)
class SupernetConfig(MethodConfig):
    """Settings of a `SupernetEmbedding`; the method that has them tells what they mean."""

    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    mode: str = "budget"
    prune: str = tunable("both", choices=("both", "rows", "dims"))
    alpha: float = tunable(1e-5, 1e-6, 1e-3, log=True)
    threshold_lr: float = tunable(1e-4, 1e-5, 1e-2, log=True)
    threshold: str = tunable("feature", choices=("feature", "id"))
    norm: int = tunable(1, choices=(1, 2))
    generations: int = 30
    mutants: int = 10
    children: int = 10
    mutation: float = tunable(0.1, 0.02, 0.5)
    retrain: str | None = tunable(None, choices=(None, "rewind", "off"))
    init: float | None = None

    def __post_init__(self) -> None:
        """Check words and ranges."""
        for name, words in _WORDS.items():
            rule = " or ".join(repr(word) for word in words if word)
            self.require(name, rule, getattr(self, name) in words)
        for name in ("alpha", "threshold_lr", "generations", "mutants", "children"):
            self.require(name, "at least 0", getattr(self, name) >= 0)
        self.require("mutation", "between 0 and 1", 0 <= self.mutation <= 1)
        self.require("norm", "1 or 2", self.norm in (1, 2))
        free = self.mode == "budget" or self.limit is None
        self.require("limit", "none in mode=faithful, whose size is what it finds", free)
        if self.init is not None:
            self.require("init", "finite and at least 0", 0 <= self.init < float("inf"))
        if self.limit is not None:
            self.require("limit", "at least 1", self.limit >= 1)

    @property
    def knob(self) -> str | None:  # type: ignore[override]  # one class, with a limit or without
        """The limit; ``mode=faithful`` has none, and a size of its own."""
        return "limit" if self.mode == "budget" else None

    def start(self, schema: Schema, dim: int) -> float:
        """Bound of the initial values."""
        return (6 / (sum(schema.cardinalities) + dim)) ** 0.5 if self.init is None else self.init


_WORDS = {
    "mode": ("budget", "faithful"),
    "prune": ("both", "rows", "dims"),
    "threshold": ("feature", "id"),
    "retrain": ("rewind", "continue", "off", None),
}


class SupernetEmbedding(StagedEmbedding):
    """The supernet, then the architecture that was found in it."""

    config: SupernetConfig
    smooth = False
    architecture = ("source.keep", "source.widths")

    def __init__(self, context: BuildContext, config: SupernetConfig) -> None:
        cardinalities, dim, device = context.schema.cardinalities, context.dim, context.device
        total, by_id = sum(cardinalities), config.threshold == "id"
        source = Supernet(
            address=OffsetAddress.of(cardinalities),
            rows=context.table(total, dim, config.start(context.schema, dim)),
            thresholds=context.table(total if by_id else len(cardinalities), 1, 0.0),
            keep=torch.ones(total, dtype=torch.bool, device=device),
            widths=torch.full((len(cardinalities),), dim, device=device),
            seed=context.seed_tensor(),
            draws=torch.zeros((), dtype=torch.int64, device=device),
            norm=config.norm,
            by_id=by_id,
            masks=config.prune,
        )
        source.thresholds.requires_grad_(config.prune != "dims")
        super().__init__(context, config, source)
        full = RaggedSize(cardinalities, context.codec)((dim,) * len(cardinalities), cardinalities)
        self._limit = full if config.mode == "faithful" else config.limit or full // 10
        try:
            self._default = self._uniform()
        except BudgetError as error:
            if config.limit is not None:
                raise
            self._limit = error.floor
            self._default = self._uniform()
        self.entered()

    @property
    def sizes_follow_values(self) -> bool:  # type: ignore[override]  # until a search they do not
        """Whether bytes depend on what was found; within a budget they are known before."""
        return self.stage not in ("", "supernet") or self.config.mode == "faithful"

    @property
    def net(self) -> Supernet:
        """The part that holds table, thresholds and masks."""
        assert isinstance(self.source, Supernet)
        return self.source

    def stages(self) -> tuple[Stage, ...]:
        """Supernet, search, and retraining."""
        first = (Stage("supernet"), Stage("search", "search"))
        retrain = self.config.retrain
        if retrain == "off":
            return first
        if retrain == "rewind" or (retrain is None and self.config.mode == "faithful"):
            return (*first, Stage("retrain", weights="initial"))
        return (*first, Stage("retrain"))

    def entered(self) -> None:
        """Choose what is computed from stage and mode."""
        if self.stage in ("search", "retrain") or not (self.stage or self.training):
            form = "architecture"
        else:
            form = "supernet" if self.training else "thresholds"
        self.net.form = form  # type: ignore[misc, assignment]

    def train(self, mode: bool = True) -> SupernetEmbedding:
        """Set the mode; before any training, eval mode is what `freeze` would give."""
        super().train(mode)
        self.entered()
        if not mode and not self.stage:
            keep, widths, _ = self._untrained()
            self._set(keep, widths)
        return self

    def unsettled(self) -> str:
        """Before its search it is a supernet; in ``mode=faithful`` the table has its own Adam."""
        if self.stage != "retrain":
            return "its architecture is not found yet: its rows can be divided after its search"
        if self.config.mode == "faithful":
            return "mode=faithful steps all its rows by an Adam of its own"
        return ""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The table, and in the supernet the thresholds by plain SGD."""
        net, groups = self.net, [{"params": list(self.net.rows.parameters()), "lr": lr}]
        if self.config.mode == "faithful":
            groups[0]["optimizer"] = "dense_adam"
        if self.stage in ("", "supernet") and self.config.prune != "dims":
            thresholds: dict[str, Any] = {"params": list(net.thresholds.parameters())}
            sgd = {"lr": self.config.threshold_lr, "optimizer": "row_sgd", "weight_decay": 0.0}
            groups.append(thresholds | sgd)
        return groups

    def penalty(self) -> Tensor:
        """``alpha sum exp(-t)`` in the supernet."""
        if self.net.form != "supernet" or self.config.prune == "dims":
            return super().penalty()
        thresholds = self.net.thresholds.get_parameter("weight")
        return self.config.alpha * torch.exp(-thresholds).sum()

    def after_step(self, step: int) -> None:
        """Keep thresholds between 0 and the largest norm of the last batch (``mode=budget``)."""
        net = self.net
        if self.config.mode == "budget" and net.form == "supernet" and net.largest is not None:
            with torch.no_grad():
                thresholds = net.thresholds.get_parameter("weight")
                most = torch.inf if net.by_id else net.largest[:, None]
                thresholds.copy_(thresholds.clamp(min=0).minimum(torch.as_tensor(most)))

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Choose the rows and, by evolution, the widths."""
        self.stage = stage.name
        self.entered()
        config, space = self.config, self.space()
        widths = self._default[0]
        if config.prune != "rows" and config.generations:
            counts = (config.generations, config.mutants, config.children)
            settings = Evolution(*counts, parents=max(1, config.mutants), mutation=config.mutation)
            first = space.first(config.mutants + config.children, self.seed)
            scorer = self.scorer(space, evaluate)
            repair, gene = space.repair, space.gene
            widths = evolve(first, gene, repair, scorer, settings, self.seed).best
        self._set(space.rank < space.kept(widths), widths)

    def space(self) -> RaggedSpace:
        """Return the widths that a search may choose, as rows and thresholds are now."""
        prunes_rows = self.config.prune != "dims"
        scores = self._scores() if prunes_rows else torch.zeros_like(self._scores())
        limit = None if self.config.mode == "faithful" else self._limit
        return RaggedSpace(self._size(), self.dim, limit, scores, rows=prunes_rows)

    def scorer(
        self, space: RaggedSpace, evaluate: Callable[[], float]
    ) -> Callable[[list[Candidate]], list[float]]:
        """Return what scores candidates: in one pass where ``evaluate`` can, else one by one."""
        net, variants = self.net, getattr(evaluate, "variants", None)

        def together(candidates: list[Candidate]) -> list[float]:
            assert variants is not None
            kept = torch.tensor([space.kept(one) for one in candidates], device=space.rank.device)
            net.variants = (space.rank, kept, torch.tensor(candidates).to(kept))  # type: ignore[misc]
            self.variants = RaggedVariants(self.schema, net, space.rank, kept.tolist(), candidates)
            found: list[float] = variants(len(candidates))
            net.variants, self.variants = None, None  # type: ignore[misc]
            return found

        def apart(candidates: list[Candidate]) -> list[float]:
            scores = []
            for one in candidates:
                self._set(space.rank < space.kept(one), one)
                scores.append(evaluate() if variants is None else variants(1)[0])
            return scores

        return together if variants is not None and self.schema.single_valued else apart

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        net, cardinalities = self.net, self.schema.cardinalities
        if self.stage in ("", "supernet"):
            keep, widths, kept = self._untrained()
        else:
            keep, widths = net.keep, tuple(net.widths.tolist())
            kept = tuple(int(part.sum()) for part in torch.split(keep, list(cardinalities)))
        weight = net.rows.get_parameter("weight").detach()
        source = ragged_source(weight, keep, cardinalities, widths, kept, codec)
        return FrozenEmbedding(self.schema, self.dim, self.widths, source)

    def _uniform(self) -> Shape:
        config = self.config
        return uniform_shape(self._size(), self.dim, self._limit, config.prune, config.name)

    def _size(self) -> RaggedSize:
        return RaggedSize(self.schema.cardinalities, self.codec)

    def _scores(self) -> Tensor:
        return self.net.scores(self.schema.cardinalities)

    def _untrained(self) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """Return mask, widths and numbers of kept rows without a search."""
        widths, kept = self._default
        if self.net.keep.is_meta:
            return self.net.keep, widths, kept
        if self.config.mode == "faithful":
            keep = self._scores() > 0
        else:
            order = RowOrder(self._scores(), self.schema.cardinalities)
            keep = (order.rank < sum(kept)).to(self.net.keep.device)
        return keep, widths, kept

    def _set(self, keep: Tensor, widths: Sequence[int]) -> None:
        self.net.keep.copy_(keep)
        self.net.widths.copy_(torch.tensor(widths))
