"""What an embedding costs in a DeepFM training step, as ratios measured in one process.

Variants take turns step by step, so that a noisy machine disturbs all of them alike:

- ``featemb RxD``: row tables with the lazy `RowAdam`, at several table sizes;
- ``nn.Embedding``: the same model and size with torch's table and dense Adam over all of it;
- ``no embedding``: the same model on constant vectors that take gradients.

Run ``python -m featemb.benchmarks.speed.training_step --out FILE``; it prints and writes JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import featemb as fe
from featemb import models, optim
from featemb.benchmarks.speed import turns as speed
from featemb.layer import BuildContext, FeatureEmbedding
from featemb.schema import Schema

Step = Callable[[], float]


class PlainTable(FeatureEmbedding):
    """``nn.Embedding`` behind the call of a layer."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__(BuildContext(schema, dim, 0, torch.device("cpu")), fe.parse("full").method)
        self.table = nn.Embedding(sum(schema.cardinalities), dim)
        offsets = torch.tensor([0, *schema.cardinalities]).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets)

    def forward(self, ids: Any) -> Tensor:
        """Return ``[B, F * D]``."""
        vectors: Tensor = self.table(ids + self.offsets)
        return vectors.flatten(1)

    def companion(self, dim: int = 1) -> PlainTable:
        """Return a table of another width."""
        return PlainTable(self.schema, dim)


class Constant(FeatureEmbedding):
    """No embedding at all: constant vectors that take gradients."""

    def __init__(self, schema: Schema, dim: int, batch: int) -> None:
        super().__init__(BuildContext(schema, dim, 0, torch.device("cpu")), fe.parse("full").method)
        self.batch = batch
        self.vectors = torch.randn(batch, dim * schema.num_features).mul_(0.05).requires_grad_()

    def forward(self, ids: Any) -> Tensor:
        """Return ``[B, F * D]``."""
        return self.vectors

    def companion(self, dim: int = 1) -> Constant:
        """Return constant vectors of another width."""
        return Constant(self.schema, dim, self.batch)


def schema_of(rows: int, features: int) -> Schema:
    """Return a schema whose features share ``rows`` ids evenly."""
    return Schema(fe.Feature(f"f{number}", rows // features) for number in range(features))


def make_step(layer: FeatureEmbedding, schema: Schema, batch: int, dense: bool) -> Step:
    """Return a function that trains one step on fresh random ids and returns its seconds."""
    net = models.build("deepfm", embedding=layer, numeric=0, hidden=(400, 400, 400))
    net.train()
    name = "dense_adam" if dense else "row_adam"
    optimizers = optim.build(net, lr=1e-3, optimizer=name)
    limits = torch.tensor(schema.cardinalities)
    generator = torch.Generator().manual_seed(0)
    layers = [one for one in net.modules() if isinstance(one, FeatureEmbedding)]
    taken = 0

    def step() -> float:
        nonlocal taken
        taken += 1
        ids = (torch.rand(batch, len(limits), generator=generator) * limits).long()
        label = (torch.rand(batch, generator=generator) < 0.25).float()
        began = time.perf_counter()
        loss = binary_cross_entropy_with_logits(net(ids), label)
        loss = loss + sum(one.penalty() for one in layers)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for one in layers:
            one.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        for one in layers:
            one.after_step(taken)
        return time.perf_counter() - began

    return step


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return seconds of the steps of every variant, measured in turns."""
    dim, features, batch = options.dim, options.features, options.batch
    steps: dict[str, Step] = {}
    for rows in options.rows:
        schema = schema_of(rows, features)
        layer = fe.embedding(schema, "full", dim=dim)
        steps[f"featemb {rows}"] = make_step(layer, schema, batch, dense=False)
    schema = schema_of(options.reference_rows, features)
    constant = Constant(schema, dim, batch)
    steps["no embedding"] = make_step(constant, schema, batch, dense=False)
    steps["nn.Embedding"] = make_step(PlainTable(schema, dim), schema, batch, dense=True)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.warmup + options.turns):
        for name, step in steps.items():
            if name == "nn.Embedding" and turn % 4:  # slow and steady: fewer turns do
                continue
            taken = step()
            if turn >= options.warmup:
                seconds[name].append(taken)
    return seconds


def summarise(seconds: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    """Return medians and the ratios of interest."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = {name: min(values) for name, values in seconds.items()}
    reference = f"featemb {options.reference_rows}"
    small, large = (f"featemb {rows}" for rows in (min(options.rows), max(options.rows)))
    pairs = {
        f"{large} / {small}": (large, small),
        f"nn.Embedding with dense Adam / {reference}": ("nn.Embedding", reference),
        f"{reference} / no embedding": (reference, "no embedding"),
    }
    return {
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "machine": speed.machine(),
        "milliseconds_median": {name: round(1e3 * value, 2) for name, value in median.items()},
        "milliseconds_best": {name: round(1e3 * value, 2) for name, value in best.items()},
        "ratios_of_medians": {k: round(median[a] / median[b], 3) for k, (a, b) in pairs.items()},
        "ratios_of_best": {k: round(best[a] / best[b], 3) for k, (a, b) in pairs.items()},
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 5_000_000, 20_000_000])
    parser.add_argument("--reference-rows", type=int, default=5_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    record = summarise(measure(options), options)
    speed.save(record, None)
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
