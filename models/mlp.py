"""The multi-layer perceptron, and linear layers that draw from a given generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featemb.models.config import MLPConfig


def linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """Make a linear layer: Xavier-uniform weights (Glorot and Bengio, 2010), zero bias."""
    # made empty: nn.Linear's own initial values would draw from torch's global generator; and not
    # by to_empty, which imports sympy: 40 MB in a process that only serves
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")
    layer.weight = nn.Parameter(torch.empty(outputs, inputs))
    if bias:
        layer.bias = nn.Parameter(torch.empty(outputs))
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def keep_inputs(layer: nn.Linear, columns: Sequence[int]) -> None:
    """Leave some inputs of a linear layer in place: the others are always zero."""
    layer.weight = _picked(layer.weight, 1, columns)
    layer.in_features = len(columns)


def keep_outputs(layer: nn.Linear, rows: Sequence[int]) -> None:
    """Leave some outputs of a linear layer in place: nothing reads the others."""
    layer.weight = _picked(layer.weight, 0, rows)
    if layer.bias is not None:
        layer.bias = _picked(layer.bias, 0, rows)
    layer.out_features = len(rows)


def _picked(tensor: Tensor, dim: int, places: Sequence[int]) -> nn.Parameter:
    index = torch.tensor(places, dtype=torch.int64, device=tensor.device)
    kept = tensor.detach().index_select(dim, index)
    return nn.Parameter(kept, requires_grad=tensor.requires_grad)


class MLP(nn.Module):
    """Hidden layers of Linear, optional batch normalisation, ReLU, dropout; then a linear output.

    Args:
        inputs: width of the input.
        config: widths of the hidden layers, dropout, batch normalisation.
        generator: source of the initial weights.
    """

    def __init__(self, inputs: int, config: MLPConfig, generator: torch.Generator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in config.hidden:
            # batch normalisation subtracts the mean, so a bias before it would do nothing
            layers.append(linear(inputs, width, generator, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU(inplace=True))
            if config.dropout:
                layers.append(nn.Dropout(config.dropout))
            inputs = width
        layers.append(linear(inputs, 1, generator))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``[B]`` of ``[B, inputs]``."""
        output: Tensor = self.layers(inputs)
        return output.squeeze(1)

    def keep_inputs(self, columns: Sequence[int]) -> None:
        """Leave some inputs in place: the others are always zero."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        keep_inputs(first, columns)


def beside(vectors: Tensor, numeric: Tensor | None) -> Tensor:
    """Return ``[B, W + M]``: the vectors with the numeric columns beside them."""
    return vectors if numeric is None else torch.cat((vectors, numeric), 1)
