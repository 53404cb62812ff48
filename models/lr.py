"""Logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import ModelConfig
from featemb.models.first_order import FirstOrder
from featemb.models.registry import register


@register("lr")
class LR(CTRModel):
    """Logistic regression: ``logit = b + sum of all embedded coordinates + <u, x>``.

    With a layer of width 1 this is exactly logistic regression on the ids. Paper: Richardson et
    al., "Predicting clicks", WWW 2007.
    """

    summary: ClassVar[str] = "Logistic regression"
    paper: ClassVar[str] = "Richardson et al., WWW 2007"
    embedding_dim: ClassVar[int | None] = 1

    def __init__(self, context: ModelContext, config: ModelConfig) -> None:
        super().__init__(context, config)
        self.first_order = FirstOrder(context)

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Zeros do not change a sum."""
        return True

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        logits: Tensor = self.first_order(vectors, numeric)
        return logits
