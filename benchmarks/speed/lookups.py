"""How long a lookup of every method takes, as a multiple of ``nn.Embedding``'s, in one process.

The bare layer, without a model, at a compression ratio. Ids are drawn by Zipf's law, so a batch
repeats them, as real ones do. A form and ``nn.Embedding`` take turns on the same batches:

- ``step``: training mode; forward, backward, the layer's hooks and its lazy `RowAdam`. Beside it
  ``nn.Embedding(sparse=True)`` with torch's `SparseAdam`: both touch the rows of the batch only;
- ``forward``: training mode, forward alone, with what backward needs;
- ``frozen``: the frozen layer, as it is written;
- ``each_id``: the same without `featemb.once`, where it applies: every id is computed as it stands;
- ``compiled``: the frozen layer by `torch.compile`, beside a compiled ``nn.Embedding``.

Before it is frozen, a layer makes one step of each of its stages, so that it has its served form.
The record is written after each method; a method that it has already is not measured again.

Run ``python -m featemb.benchmarks.speed.lookups --out FILE``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import once, optim, staging
from featemb.benchmarks.serving.resident import draw
from featemb.benchmarks.speed import turns as speed
from featemb.layer import FeatureEmbedding

_PLAIN = "nn.Embedding"
FORMS = ("step", "forward", "frozen", "compiled")
Call = Callable[[Tensor], object]


class Plain(nn.Module):
    """``nn.Embedding`` over all features' rows."""

    offsets: Tensor

    def __init__(self, schema: fe.Schema, dim: int, sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(schema.cardinalities), dim, sparse=sparse)
        offsets = torch.tensor([0, *schema.cardinalities]).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets)

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[B, F * D]``."""
        vectors: Tensor = self.table(ids + self.offsets)
        return vectors.flatten(1)


class Bare(nn.Module):
    """The least model around a layer that has logits."""

    def __init__(self, layer: FeatureEmbedding) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        """Return ``[B]``."""
        logits: Tensor = self.layer(ids).sum(1)
        return logits


def plain_step(schema: fe.Schema, dim: int) -> Call:
    """Return a training step of ``nn.Embedding``."""
    plain = Plain(schema, dim, sparse=True)
    optimizer = torch.optim.SparseAdam(list(plain.parameters()), lr=1e-3)

    def step(ids: Tensor) -> None:
        optimizer.zero_grad()
        plain(ids).sum().backward()
        optimizer.step()  # type: ignore[no-untyped-call]

    return step


def layer_step(layer: FeatureEmbedding) -> Call:
    """Return a training step of a layer alone."""
    optimizers, taken = optim.build(layer, lr=1e-3), 0

    def step(ids: Tensor) -> None:
        nonlocal taken
        taken += 1
        total = layer(ids).sum() + layer.penalty()
        layer.zero_grad()
        total.backward()
        layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        layer.after_step(taken)

    return step


def served(layer: FeatureEmbedding, ids: Tensor) -> fe.FrozenEmbedding:
    """Go through the layer's stages, a step each, and freeze it."""
    label = (torch.arange(len(ids)) % 4 == 0).float()
    batch = SimpleNamespace(ids=ids, numeric=None, label=label)
    once: Callable[[int], list[Any]] = lambda epoch: [batch]  # noqa: E731
    fe.fit(Bare(layer), once, lambda: 0.5, held_out=once, epochs=1, patience=1)
    return layer.eval().freeze()


def beside(form: Call, plain: Call, batches: Iterator[Tensor], options: Any) -> dict[str, Any]:
    """Measure a form and ``nn.Embedding`` in turns on the same batches."""
    ids = next(batches)

    def on_fresh() -> speed.Taken:
        nonlocal ids
        ids = next(batches)
        return speed.timed(lambda: form(ids))

    steps = {"method": on_fresh, _PLAIN: lambda: speed.timed(lambda: plain(ids))}
    found = speed.take(steps, options.turns, options.warmup, options.limit)
    return {
        "milliseconds": found["median"]["method"],
        "plain_milliseconds": found["median"][_PLAIN],
        "ratios": {kind: round(ms["method"] / ms[_PLAIN], 2) for kind, ms in found.items()},
    }


class Bench:
    """The schema, the batches and ``nn.Embedding`` in every form.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        names = range(options.features)
        self.schema = fe.Schema(fe.Feature(f"f{n}", options.cardinality) for n in names)
        columns = {
            **{"cardinalities": list(self.schema.cardinalities), "numeric": 0},
            **{"multi": [False] * options.features, "ids": options.ids},
        }
        random = np.random.default_rng(0)
        drawn = [draw(columns, options.batch, random)["ids"] for _ in range(options.batches)]
        self.drawn = [torch.from_numpy(one) for one in drawn]
        self.batches = itertools.cycle(self.drawn)
        self.plain = Plain(self.schema, options.dim)
        self.plain_step = plain_step(self.schema, options.dim)
        self.repeats = round(float(np.mean([_repeats(one) for one in self.drawn])), 2)

    def layer(self, spec: str) -> FeatureEmbedding:
        """Build a layer at the ratio asked for, or as small as it gets."""
        options = self.options
        try:
            return fe.embedding(self.schema, spec, dim=options.dim, ratio=options.ratio)
        except fe.BudgetError as error:
            return fe.embedding(self.schema, spec, dim=options.dim, budget=error.floor)

    def measure(self, spec: str) -> dict[str, Any]:
        """Measure every form of a method."""
        options = self.options
        found: dict[str, Any] = {}
        layer = self.layer(spec)
        staging.begin(layer, layer.stages()[0], layer.state_dict())
        layer.train()
        found["spec"] = str(layer.spec)
        found["step"] = beside(layer_step(layer), self.plain_step, self.batches, options)
        found["forward"] = beside(layer, self.plain, self.batches, options)
        frozen = served(self.layer(spec), self.drawn[0])
        full = self.schema.full_bytes(options.dim)
        found["times_smaller"] = round(full / frozen.memory().serving, 1)
        with torch.no_grad():
            found["frozen"] = beside(frozen, self.plain, self.batches, options)
            if once.computes(frozen.source):
                with mock.patch("featemb.once.applies", return_value=False):
                    before = beside(frozen, self.plain, self.batches, options)
                found["each_id"] = {"frozen": before}
            if options.compiled:
                found["compiled"] = self._compiled(frozen)
        return found

    def _compiled(self, frozen: fe.FrozenEmbedding) -> dict[str, Any]:
        torch.compiler.reset()
        ids, began = self.drawn[0], time.perf_counter()
        form = torch.compile(frozen, dynamic=False)
        answer = form(ids)
        seconds = round(time.perf_counter() - began, 1)
        plain = torch.compile(self.plain, dynamic=False)
        plain(ids)
        apart = float((answer - frozen(ids)).abs().max())
        found = beside(form, plain, self.batches, self.options)
        return {**found, "compile_seconds": seconds, "largest_difference": apart}


def _repeats(ids: Tensor) -> float:
    """Return how many lookups a batch has for each distinct (feature, id)."""
    return ids.numel() / sum(len(set(column.tolist())) for column in ids.unbind(1))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    left_out = ("out", "methods")
    return {k: v for k, v in vars(options).items() if k not in left_out}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(fe.methods()))
    parser.add_argument("--ratio", type=float, default=10)
    parser.add_argument("--cardinality", type=int, default=40_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--ids", choices=("zipf", "uniform"), default="zipf")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds of a form's turns")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench = Bench(options)
    record: dict[str, Any] = {"settings": _settings(options), "machine": speed.machine()}
    record |= {"lookups_per_distinct_id": bench.repeats, "methods": {}}
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text("utf-8"))
        if before["settings"] == record["settings"]:
            record["methods"] = before["methods"]
    for spec in options.methods:
        if spec not in record["methods"]:
            found = record["methods"][spec] = bench.measure(spec)
            ratios = [found[form]["ratios"]["median"] for form in FORMS if form in found]
            print(f"{spec:40}", *(f"{one:8.2f}" for one in ratios), flush=True)
            if options.out is not None:
                speed.save(record, options.out)
    if options.out is None:
        speed.save(record, None)


if __name__ == "__main__":
    main()
