"""What a training step costs under FBGEMM's kernels, as a multiple of featemb's own on torch's.

The same layer under both kernels (`featemb.use_kernel`) takes turns step by step in one process, on
the same random ids: alone, its vectors summed up to a logit, and below the network of a DeepFM.

Run ``python -m featemb.benchmarks.speed.kernels --out FILE``; it prints and writes JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import featemb as fe
from featemb import models, optim, staging
from featemb.benchmarks import environment
from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.speed.training_step import schema_of
from featemb.fbgemm.choice import KERNELS
from featemb.schema import Schema

Step = Callable[[], float]
RATES = {"row_sgd": 0.1, "row_adagrad": 0.01, "rowwise_adagrad": 0.01, "row_adam": 0.001}
_BLOCK = 1 << 16


class Alone(nn.Module):
    """A layer without a network: the mean of its numbers is the logit."""

    def __init__(self, layer: fe.FeatureEmbedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits ``[B]``."""
        vectors: Tensor = self.layer(ids)
        return vectors.mean(1)


class RandomBatch(NamedTuple):
    """Random ids and labels."""

    ids: Tensor
    numeric: None
    label: Tensor


def make_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    schema: Schema,
    how: argparse.Namespace,
) -> Step:
    """Return a function that trains one step on fresh random ids and returns its seconds."""
    model.train()
    layers = staging.layers(model)
    limits = torch.tensor(schema.cardinalities)
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        drawn = torch.rand(how.batch, len(limits), generator=generator, dtype=torch.float64)
        ids = (drawn**how.power * limits).long().to(how.device)
        label = (torch.rand(how.batch, generator=generator) < 0.25).float().to(how.device)
        environment.synchronize(how.device)
        began = time.perf_counter()
        staging.update(model, layers, RandomBatch(ids, None, label), optimizers)
        environment.synchronize(how.device)
        return time.perf_counter() - began

    return step


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of two layers' parameters, a block of rows at a time."""
    largest = 0.0
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        for block, same in zip(torch.split(left, _BLOCK), torch.split(right, _BLOCK), strict=True):
            largest = max(largest, float((block - same).abs().max()))
    return largest


def measure(
    rows: int, dim: int, optimizer: str, network: bool, how: argparse.Namespace
) -> dict[str, Any]:
    """Return the times of a layer's steps under both kernels, and how far their rows are apart."""
    schema = schema_of(rows, how.features)
    layers, steps, made = {}, {}, {}
    for kernel in KERNELS:
        layers[kernel] = fe.embedding(schema, how.method, dim=dim, device=how.device)
        model: nn.Module = Alone(layers[kernel])
        if network:
            model = models.build("deepfm", embedding=layers[kernel], numeric=0, dropout=0.0)
        fe.use_kernel(model.to(how.device), kernel)
        made[kernel] = optim.build(model, RATES[optimizer], optimizer)
        steps[kernel] = make_step(model, made[kernel], schema, how)
    seconds: dict[str, list[float]] = speed.rounds(steps, how.turns, how.warmup)
    median = {kernel: statistics.median(values) for kernel, values in seconds.items()}
    return {
        "rows": rows,
        "dim": dim,
        "optimizer": optimizer,
        "network": "deepfm" if network else None,
        "milliseconds": {kernel: round(1e3 * one, 2) for kernel, one in median.items()},
        "fbgemm / torch": round(median["fbgemm"] / median["torch"], 2),
        "fbgemm / torch, best": round(min(seconds["fbgemm"]) / min(seconds["torch"]), 2),
        "training bytes": {k: one.memory(made[k]).training for k, one in layers.items()},
        "largest difference": difference(layers["torch"], layers["fbgemm"]),
    }


def cases(how: argparse.Namespace) -> list[tuple[int, int, str, bool]]:
    """Return what is measured: rows, dim, optimizer, whether with a network."""
    alone = [(r, d, name, False) for name in how.optimizers for d in how.dims for r in how.rows]
    middle = sorted(how.rows)[len(how.rows) // 2]
    return alone + [(middle, d, how.optimizers[0], True) for d in how.dims if not how.alone]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument(
        "--optimizers", nargs="+", default=["row_adagrad", "rowwise_adagrad", "row_sgd"]
    )
    parser.add_argument("--method", default="full")
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument(
        "--power", type=float, default=1.0, help="ids are n u^power of uniform u: 1 is uniform"
    )
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="no steps with a network")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark from the command line."""
    how = options()
    found = []
    print("      rows  dim  optimizer        network   torch ms  fbgemm ms  fbgemm / torch")
    for rows, dim, optimizer, network in cases(how):
        one = measure(rows, dim, optimizer, network, how)
        times, below = one["milliseconds"], one["network"] or "-"
        print(
            f"{rows:10,} {dim:4}  {optimizer:16} {below:8} {times['torch']:9.2f} "
            f"{times['fbgemm']:10.2f} {one['fbgemm / torch']:15.2f}",
            flush=True,
        )
        found.append(one)
    packages = [p for p in ("fbgemm-gpu-cpu", "fbgemm-gpu") if _version(p)]
    record = {
        "settings": {k: v for k, v in vars(how).items() if k != "out"},
        "machine": {
            **speed.machine(),
            "device": environment.device(how.device),
            **{package: _version(package) for package in packages},
        },
        "cases": found,
    }
    if how.out is not None:
        speed.save(record, how.out)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    main()
