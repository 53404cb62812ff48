"""Where the time of our training step goes: shares of its parts, by torch's profiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from featemb import optim, staging
from featemb.benchmarks.speed.peer_models import Sizes, batches, featemb_net
from featemb.datasets import Split
from featemb.layer import FeatureEmbedding
from featemb.parts import Lookup

PARTS = ("data", "address", "rows", "combine", "net", "optimizer")
_BACKWARD = "_RowGatherBackward"


def shares(sizes: Sizes, turns: int, warmup: int) -> dict[str, Any]:
    """Return the milliseconds of our step under the profiler, and the share of each part."""
    net = featemb_net(sizes)
    optimizers, layers = optim.build(net, lr=1e-3), staging.layers(net)
    drawn = [batches(sizes)() for _ in range(4)]
    ids, label = (torch.cat(one) for one in zip(*drawn, strict=True))
    data = Split(label, ids)
    epochs = (
        batch
        for epoch in range(warmup + turns)
        for batch in data.batches(sizes.batch, shuffle=True, epoch=epoch)
    )
    watched: Any = [_Watched(one) for one in optimizers]
    for _ in range(warmup):
        staging.update(net, layers, next(epochs), optimizers)
    with _named(net), profile(activities=[ProfilerActivity.CPU]) as watch:
        for _ in range(turns):
            with record_function("step"):
                with record_function("data"):
                    batch = next(epochs)
                staging.update(net, layers, batch, watched)
    spent = {event.key: event.cpu_time_total for event in watch.key_averages()}
    whole = spent["step"]
    found = {
        "data": spent["data"],
        "rows": spent["rows"] + spent[_BACKWARD],
        "combine": spent["combine"],
        "address": spent["layer"] - spent["rows"] - spent["combine"],
        "optimizer": spent["optimizer"],
    }
    found["net"] = whole - sum(found.values())
    return {
        "milliseconds": round(whole / turns / 1e3, 3),
        "shares": {name: round(found[name] / whole, 4) for name in PARTS},
    }


class _Watched:
    """An optimizer whose steps have a name in the profile."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def step(self) -> None:
        with record_function("optimizer"):
            self._optimizer.step()


@contextmanager
def _named(net: nn.Module) -> Iterator[None]:
    """Give the layers of a model, their rows and combines, names in a profile."""
    handles = []
    for module in net.modules():
        named: dict[str, nn.Module] = {}
        if isinstance(module, FeatureEmbedding):
            named["layer"] = module
        if isinstance(module, Lookup):
            named |= {"rows": module.rows, "combine": module.combine}
        for name, one in named.items():
            handles += _name(one, name)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _name(module: nn.Module, name: str) -> list[Any]:
    open_ones: list[Any] = []

    def enter(*_: Any) -> None:
        open_ones.append(record_function(name))
        open_ones[-1].__enter__()

    def leave(*_: Any) -> None:
        open_ones.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
