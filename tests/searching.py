"""A layer with stages of every kind, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import featemb as fe
from featemb.check.case import SINGLE
from featemb.layer import BuildContext
from featemb.methods.full import Full
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.staging import StagedEmbedding


class Searching(StagedEmbedding):
    """A table whose features have gates: trained on held-out batches, then searched.

    Attributes:
        gate: a factor a feature, trained on held-out batches.
        mask: which features are on; found by the search.
        steps: counts the training steps.
    """

    architecture: ClassVar[tuple[str, ...]] = ("mask",)

    def __init__(self, seed: int = 0, dim: int = 4) -> None:
        context = BuildContext(SINGLE, dim, seed, torch.device("cpu"))
        source = Lookup(
            address=OffsetAddress.of(SINGLE.cardinalities),
            rows=context.table(sum(SINGLE.cardinalities), dim, 0.3),
            combine=Concat(),
        )
        super().__init__(context, Full(), source)
        self.gate = nn.Parameter(torch.ones(SINGLE.num_features))
        self.register_buffer("mask", torch.ones(SINGLE.num_features))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.mask: Tensor
        self.steps: Tensor
        self.plan: tuple[fe.Stage, ...] = (
            fe.Stage("both", epochs=2, held_out=True),
            fe.Stage("pick", "search"),
            fe.Stage("on", epochs=2, optimizer="keep", held_out=True),
            fe.Stage("again", weights="initial"),
            fe.Stage("tail", epochs=1, optimizer="keep"),
        )

    def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
        factor = (self.gate * self.mask)[feature]
        return super().lookup(ids, feature) * factor[..., None]

    def forward_single(self, ids: Tensor) -> Tensor:
        return self.lookup(ids, torch.arange(SINGLE.num_features))

    def stages(self) -> tuple[fe.Stage, ...]:
        return self.plan

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        rows = [p for name, p in self.named_parameters() if name != "gate"]
        return [{"params": rows, "lr": lr}, {"params": [self.gate], "split": "held_out"}]

    def after_step(self, step: int) -> None:
        self.steps += 1

    def search(self, stage: fe.Stage, evaluate: Callable[[], float]) -> None:
        scores = []
        for feature in range(SINGLE.num_features):
            self.mask.fill_(1.0)[feature] = 0.0
            scores.append(evaluate())
        self.mask.fill_(1.0)[scores.index(max(scores))] = 0.0
