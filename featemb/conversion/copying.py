"""A copy of a model in which other modules stand, made without a copy of what they replace."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from featemb.errors import ConfigError


class NoOptimizer:
    """Stands where a model kept its optimizer: a converted model is there to serve."""

    def __repr__(self) -> str:
        return "NoOptimizer()"


def copied(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return a deep copy of a model with other modules in some places.

    The parameters of the replaced modules are not copied; where the model's own lists name them
    (terms of a penalty), there are parameters of no rows. Optimizers are left out.

    Raises:
        ConfigError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for old, new in swaps.items():
        for one in old.parameters():
            empty = one.new_empty(0, *one.shape[1:])
            memo[id(one)] = nn.Parameter(empty, requires_grad=False)
        memo |= {id(one): one.new_empty(0) for one in old.buffers()}
        memo |= {id(each): new for each in (old,)}
    memo |= {id(one): NoOptimizer() for one in _optimizers(model)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a foreign class raises when it is copied
        raise ConfigError(
            f"a {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); "
            "pass inplace=True to convert the model itself"
        ) from error


def put_in_place(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules of a model in the model itself; return it, or what replaces it."""
    if model in swaps:
        return swaps[model]
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if child is not None and child in swaps:
                owner._modules[name] = swaps[child]
        for name, value in list(vars(owner).items()):
            if isinstance(value, _OPTIMIZERS):
                setattr(owner, name, NoOptimizer())
    return model


_OPTIMIZERS = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


def _optimizers(model: nn.Module) -> Iterator[Any]:
    """Optimizers and schedules among a model's attributes, in lists and mappings too."""
    for owner in model.modules():
        for value in vars(owner).values():
            inner = value.values() if isinstance(value, dict) else value
            several = inner if isinstance(value, (dict, list, tuple)) else (value,)
            yield from (one for one in several if isinstance(one, _OPTIMIZERS))
