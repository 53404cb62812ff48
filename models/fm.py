"""Factorization machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import ModelConfig, check_flag
from featemb.models.fields import EqualWidths, Pairwise
from featemb.models.first_order import FirstOrder
from featemb.models.registry import register


@dataclass(frozen=True, kw_only=True)
class FMConfig(ModelConfig):
    """Settings of `FM`.

    Attributes:
        project: map features of unequal width to the largest one.
    """

    project: bool = False

    def __post_init__(self) -> None:
        check_flag(self, "project")


@register("fm")
class FM(CTRModel):
    """Factorization machine (Rendle, ICDM 2010).

    ``logit = b + sum_f w_f + <u, x> + sum_{i<j} <z_i, z_j>``: w_f from a companion of width 1,
    z the embedded features and ``x_j v_j`` for numeric columns.
    """

    config_class: ClassVar[type[ModelConfig]] = FMConfig
    summary: ClassVar[str] = "Factorization machine"
    paper: ClassVar[str] = "Rendle, ICDM 2010"

    def __init__(self, context: ModelContext, config: FMConfig) -> None:
        super().__init__(context, config)
        self.equal = EqualWidths(context, self.name, config.project)
        self.pairwise = Pairwise(context, self.equal.dim)
        self.companion = context.embedding.companion(1)
        self.first_order = FirstOrder(context)

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Sum over the columns that are there."""
        self.equal.keep_inputs(columns)
        return True

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        first: Tensor = self.first_order(self.companion(ids), numeric)
        second: Tensor = self.pairwise(self.equal.sums(vectors), numeric)
        return first + second
