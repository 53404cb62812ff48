"""`build`: the optimizers of a model, from names and the groups of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from featemb.errors import ConfigError, nearest
from featemb.layer import FeatureEmbedding
from featemb.optim.dense import DenseAdam
from featemb.optim.lazy import RowAdagrad, RowAdam, RowSGD

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "row_adam": RowAdam,
    "row_adagrad": RowAdagrad,
    "row_sgd": RowSGD,
    "dense_adam": DenseAdam,
}


def build(
    model: nn.Module,
    lr: float,
    optimizer: str = "row_adam",
    weight_decay: float = 0.0,
    net_weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model: the groups of its embedding layers, then the rest.

    Args:
        model: a module with any number of `featemb.FeatureEmbedding` inside.
        lr: learning rate, where a layer's group does not set its own.
        optimizer: ``row_adam``, ``row_adagrad``, ``row_sgd`` or ``dense_adam``; a layer's group
            may name another.
        weight_decay: L2 on the embedding layers (see the module's text for what lazy means).
        net_weight_decay: L2 on all other parameters.

    Raises:
        ConfigError: there is no such optimizer.
    """
    groups: dict[str, list[dict[str, Any]]] = {optimizer: []}
    seen: set[int] = set()
    for layer in (module for module in model.modules() if isinstance(module, FeatureEmbedding)):
        for group in layer.param_groups(lr):
            entry = {"weight_decay": weight_decay, **group, "params": list(group["params"])}
            groups.setdefault(entry.pop("optimizer", optimizer), []).append(entry)
            seen.update(id(parameter) for parameter in entry["params"])
    rest = [parameter for parameter in model.parameters() if id(parameter) not in seen]
    if rest:
        groups[optimizer].append({"params": rest, "lr": lr, "weight_decay": net_weight_decay})
    made = []
    for name, entries in groups.items():
        if name not in OPTIMIZERS:
            raise ConfigError(f"unknown optimizer {name!r}; {nearest(name, OPTIMIZERS)}")
        if entries:
            made.append(OPTIMIZERS[name](entries, lr=lr))
    return made
