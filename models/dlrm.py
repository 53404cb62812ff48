"""DLRM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import MLPConfig, ModelConfig, check_flag, check_layers
from featemb.models.fields import EqualWidths
from featemb.models.mlp import MLP, linear
from featemb.models.registry import register


@dataclass(frozen=True, kw_only=True)
class DLRMConfig(MLPConfig):
    """Settings of `DLRM`; hidden, dropout and batch_norm are the top MLP's.

    Attributes:
        bottom: widths of the bottom MLP's hidden layers, before its output of width D.
        project: map features of unequal width to the largest one.
    """

    bottom: tuple[int, ...] = (64, 64)
    batch_norm: bool = True
    project: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self, "bottom")
        check_flag(self, "project")


@register("dlrm")
class DLRM(CTRModel):
    """DLRM (Naumov et al., 2019) with dot interactions.

    ``z_0 = ReLU-MLP(x)`` of width D from the numeric columns, ``z_f = e_f``;
    ``logit = MLP([z_0; <z_i, z_j> for i > j])``. Without numeric columns there is no z_0.
    """

    config_class: ClassVar[type[ModelConfig]] = DLRMConfig
    summary: ClassVar[str] = "Dot products of features under an MLP"
    paper: ClassVar[str] = "Naumov et al., 2019"
    pairs: Tensor

    def __init__(self, context: ModelContext, config: DLRMConfig) -> None:
        super().__init__(context, config)
        self.equal = EqualWidths(context, self.name, config.project)
        dim = self.equal.dim
        self.bottom: nn.Sequential | None = None
        if context.numeric:
            self.bottom = _bottom(context, (*config.bottom, dim))
        count = len(context.embedding.widths) + (self.bottom is not None)
        if count < 2:
            raise ConfigError(
                f"{self.name} needs at least two vectors to multiply: "
                f"two features, or one and numeric columns; got {count}"
            )
        rows, columns = torch.tril_indices(count, count, offset=-1)
        self.register_buffer("pairs", rows * count + columns, persistent=False)
        width = len(self.pairs) + (dim if self.bottom is not None else 0)
        self.mlp = MLP(width, config, context.generator)

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        fields = self.equal(vectors)
        dense: Tensor | None = None if self.bottom is None else self.bottom(numeric)
        if dense is not None:
            fields = torch.cat((dense[:, None], fields), 1)
        products = torch.bmm(fields, fields.transpose(1, 2)).flatten(1)
        inputs = products.index_select(1, self.pairs)
        if dense is not None:
            inputs = torch.cat((dense, inputs), 1)
        logits: Tensor = self.mlp(inputs)
        return logits


def _bottom(context: ModelContext, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = context.numeric
    for width in widths:
        layers += [linear(inputs, width, context.generator), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)
