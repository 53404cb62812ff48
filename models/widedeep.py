"""Wide & Deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import MLPConfig, ModelConfig
from featemb.models.first_order import FirstOrder
from featemb.models.mlp import MLP, beside
from featemb.models.registry import register


@register("widedeep")
class WideDeep(CTRModel):
    """Wide & Deep (Cheng et al., DLRS 2016): ``logit = b + sum_f w_f + <u, x> + MLP([e; x])``.

    The wide part reads the ids through a companion of width 1, without hand-made crosses.
    """

    config_class: ClassVar[type[ModelConfig]] = MLPConfig
    summary: ClassVar[str] = "Linear model and MLP, trained together"
    paper: ClassVar[str] = "Cheng et al., DLRS 2016"

    def __init__(self, context: ModelContext, config: MLPConfig) -> None:
        super().__init__(context, config)
        self.companion = context.embedding.companion(1)
        self.first_order = FirstOrder(context)
        width = sum(context.embedding.widths) + context.numeric
        self.mlp = MLP(width, config, context.generator)

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Narrow the MLP."""
        self.mlp.keep_inputs(columns)
        return True

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        wide: Tensor = self.first_order(self.companion(ids), numeric)
        deep: Tensor = self.mlp(beside(vectors, numeric))
        return wide + deep
