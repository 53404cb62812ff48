"""DeepFM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import MLPConfig, ModelConfig, check_flag
from featemb.models.fields import EqualWidths, Pairwise
from featemb.models.first_order import FirstOrder
from featemb.models.mlp import MLP, beside
from featemb.models.registry import register


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig(MLPConfig):
    """Settings of `DeepFM`.

    Attributes:
        project: map features of unequal width to the largest one, for the FM term; the MLP
            reads them as they are.
    """

    project: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(self, "project")


@register("deepfm")
class DeepFM(CTRModel):
    """DeepFM (Guo et al., IJCAI 2017): ``logit = FM + MLP([e; x])`` over one shared embedding.

    The FM is that of `featemb.models.fm`. The MLP reads numeric columns x as they are: a linear
    layer over the FM's ``x_j v_j`` is a linear layer over ``x_j``.
    """

    config_class: ClassVar[type[ModelConfig]] = DeepFMConfig
    summary: ClassVar[str] = "FM and MLP over a shared embedding"
    paper: ClassVar[str] = "Guo et al., IJCAI 2017"

    def __init__(self, context: ModelContext, config: DeepFMConfig) -> None:
        super().__init__(context, config)
        self.equal = EqualWidths(context, self.name, config.project)
        self.pairwise = Pairwise(context, self.equal.dim)
        self.companion = context.embedding.companion(1)
        self.first_order = FirstOrder(context)
        width = sum(context.embedding.widths) + context.numeric
        self.mlp = MLP(width, config, context.generator)

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Narrow the MLP; the FM term fills its vectors up with zeros."""
        self.equal.keep_inputs(columns)
        self.mlp.keep_inputs(columns)
        return True

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        first: Tensor = self.first_order(self.companion(ids), numeric)
        second: Tensor = self.pairwise(self.equal.sums(vectors), numeric)
        deep: Tensor = self.mlp(beside(vectors, numeric))
        return first + second + deep
