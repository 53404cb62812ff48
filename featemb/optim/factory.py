"""`build`: the optimizers of a model, from names and the groups of its layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from featemb.errors import ConfigError, nearest
from featemb.layer import outermost
from featemb.optim.dense import DenseAdam
from featemb.optim.lazy import RowAdagrad, RowAdam, RowOptimizer, RowSGD
from featemb.optim.rmsprop import RowRMSprop
from featemb.rows import claim
from featemb.stage import Stage

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "row_adam": RowAdam,
    "row_adagrad": RowAdagrad,
    "rowwise_adagrad": partial(RowAdagrad, rowwise=True),
    "row_rmsprop": RowRMSprop,
    "row_sgd": RowSGD,
    "dense_adam": DenseAdam,
}


def build(
    model: nn.Module,
    lr: float,
    optimizer: str = "row_adam",
    weight_decay: float = 0.0,
    net_weight_decay: float = 0.0,
    stage: Stage | None = None,
    split: str = "train",
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model: the groups of its embedding layers, then the rest.

    Make them anew for every stage that does not keep its optimizer: a layer's groups may change.

    Args:
        model: a module with any number of `featemb.FeatureEmbedding` inside.
        lr: learning rate, where a layer's group does not set its own.
        optimizer: ``row_adam``, ``row_adagrad``, ``rowwise_adagrad`` (one sum a row),
            ``row_rmsprop``, ``row_sgd`` or ``dense_adam``; a layer's group may name another.
        weight_decay: L2 on the embedding layers (see the module's text for what lazy means).
        net_weight_decay: L2 on all other parameters.
        stage: what is trained; without its ``network`` the layers alone.
        split: "train", or "held_out" for the groups that are trained on held-out batches.

    Raises:
        ConfigError: there is no such optimizer.
    """
    groups: dict[str, list[dict[str, Any]]] = {optimizer: []}
    seen: set[int] = set()
    for layer in outermost([model]):
        for group in layer.param_groups(lr):
            entry = {"weight_decay": weight_decay, **group, "params": list(group["params"])}
            seen.update(id(parameter) for parameter in entry["params"])
            if entry.pop("split", "train") == split and entry["params"]:
                groups.setdefault(entry.pop("optimizer", optimizer), []).append(entry)
        seen.update(id(parameter) for parameter in layer.parameters())
    rest = [
        parameter
        for parameter in model.parameters()
        if id(parameter) not in seen and not getattr(parameter, "stepped_apart", False)
    ]
    if rest and split == "train" and (stage is None or stage.network):
        groups[optimizer].append({"params": rest, "lr": lr, "weight_decay": net_weight_decay})
    made = _made_apart(model, lr, optimizer, weight_decay) if split == "train" else []
    for name, entries in groups.items():
        if name not in OPTIMIZERS:
            raise ConfigError(f"unknown optimizer {name!r}; {nearest(name, OPTIMIZERS)}")
        if entries:
            made.append(OPTIMIZERS[name](entries, lr=lr))
    return made


def follow(optimizer: torch.optim.Optimizer) -> None:
    """Let the state of an optimizer that is not featemb's move with the rows of tables.

    Methods that give rows to other ids while they train move or clear the optimizer state of these
    rows. They know the optimizers of this package; another one, such as ``torch.optim.Adam``, after
    this call. Its tables get dense gradients. Call it again after ``add_param_group``.

    Args:
        optimizer: keeps state tensors of which the first axis is the table's.
    """
    if isinstance(optimizer, (RowOptimizer, DenseAdam)):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            claim(parameter, optimizer, row_gradients=False)


def _made_apart(
    model: nn.Module, lr: float, optimizer: str, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Ask the modules whose rows are stepped by others (TorchRec, FBGEMM) for what does so."""
    makers = (getattr(module, "row_optimizer", None) for module in model.modules())
    made = [make(optimizer, lr, weight_decay) for make in makers if make is not None]
    return [one for one in made if one is not None]
