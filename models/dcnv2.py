"""DCN-V2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import MLPConfig, ModelConfig, is_integer
from featemb.models.mlp import MLP, beside, keep_inputs, keep_outputs, linear
from featemb.models.registry import register

Structure = Literal["parallel", "stacked"]


@dataclass(frozen=True, kw_only=True)
class DCNv2Config(MLPConfig):
    """Settings of `DCNv2`.

    Attributes:
        hidden: widths of the MLP's hidden layers; empty leaves the cross layers alone (stacked)
            or beside a linear layer (parallel).
        cross_layers: number of cross layers.
        low_rank: rank r of the cross layers' weights ``W = U V``, U ``[d, r]``; None is full rank.
        structure: "parallel" adds the MLP of x_0 to the cross layers, "stacked" puts it on top.
    """

    hidden: tuple[int, ...] = (500, 500, 500)
    cross_layers: int = 3
    low_rank: int | None = None
    structure: Structure = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        layers, rank = self.cross_layers, self.low_rank
        self.require("cross_layers", "an integer >= 1", is_integer(layers) and layers >= 1)
        self.require(
            "low_rank", "an integer >= 1 or None", rank is None or (is_integer(rank) and rank >= 1)
        )
        choices = get_args(Structure)
        self.require("structure", f"one of {', '.join(choices)}", self.structure in choices)


class CrossLayers(nn.Module):
    """Cross layers ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`` over vectors of width d.

    Args:
        width: d.
        config: number and rank of the layers.
        generator: source of the initial weights.
    """

    def __init__(self, width: int, config: DCNv2Config, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(config.cross_layers):
            if config.low_rank is None:
                self.layers.append(linear(width, width, generator))
            else:
                inner = linear(width, config.low_rank, generator, bias=False)
                self.layers.append(nn.Sequential(inner, linear(config.low_rank, width, generator)))

    def keep_inputs(self, columns: Sequence[int]) -> None:
        """Leave some coordinates in place: where x_0 is zero, every x_l is."""
        for layer in self.layers:
            first, last = (layer[0], layer[1]) if isinstance(layer, nn.Sequential) else (layer,) * 2
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            keep_inputs(first, columns)
            keep_outputs(last, columns)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[B, d]`` of x_0 ``[B, d]``."""
        crossed = inputs
        for layer in self.layers:
            crossed = torch.addcmul(crossed, inputs, layer(crossed))
        return crossed


@register("dcnv2")
class DCNv2(CTRModel):
    """DCN-V2 (Wang et al., WWW 2021), with full-rank or low-rank cross layers.

    ``x_0 = [e; x]``. Parallel: ``logit = <w, x_L> + MLP(x_0)``, which is one linear layer over
    both parts side by side. Stacked: ``logit = MLP(x_L)``. Widths may be unequal.
    """

    config_class: ClassVar[type[ModelConfig]] = DCNv2Config
    summary: ClassVar[str] = "Cross layers and MLP"
    paper: ClassVar[str] = "Wang et al., WWW 2021"

    def __init__(self, context: ModelContext, config: DCNv2Config) -> None:
        super().__init__(context, config)
        width = sum(context.embedding.widths) + context.numeric
        self.cross = CrossLayers(width, config, context.generator)
        self.mlp = MLP(width, config, context.generator)
        self.output: nn.Linear | None = None
        if config.structure == "parallel":
            # the MLP's output layer has the bias of the sum
            self.output = linear(width, 1, context.generator, bias=False)

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Narrow the cross layers, the MLP and the output layer."""
        self.cross.keep_inputs(columns)
        self.mlp.keep_inputs(columns)
        if self.output is not None:
            keep_inputs(self.output, columns)
        return True

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return ``[B]``."""
        inputs = beside(vectors, numeric)
        crossed = self.cross(inputs)
        if self.output is None:
            stacked: Tensor = self.mlp(crossed)
            return stacked
        parallel: Tensor = self.output(crossed).squeeze(1) + self.mlp(inputs)
        return parallel
