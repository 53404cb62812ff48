"""What it costs to score a population of architectures: one pass for all against a pass for each.

A supernet of OptEmbed is trained for an epoch and searched; then the candidates of the search's
last generation are scored in both ways, in turns. A pass reads all validation rows and ends with
the AUC of each candidate; both ways must give the same. Run
``python -m featemb.benchmarks.speed.search_scoring --out FILE``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import featemb as fe
from featemb import staging
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.network import build_network
from featemb.benchmarks.sources import load
from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.training import Validation
from featemb.datasets import Dataset
from featemb.evolution import Candidate
from featemb.supernet import SupernetEmbedding

MODELS: dict[str, dict[str, Any]] = {
    "fm": {},
    "widedeep": {"hidden": [192], "dropout": 0.0},
    "dcnv2": {"hidden": [192], "cross_layers": 1, "dropout": 0.0},
    "deepfm": {"hidden": [192], "dropout": 0.0},
    "dlrm": {"hidden": [192], "dropout": 0.0, "batch_norm": False},
}


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a generation scored by a pass each and in one pass."""
    config = RunConfig(
        data=options.data,
        model=model,
        model_config=MODELS[model],
        method=f"optembed(generations={options.generations})",
        ratio=options.ratio,
        dim=options.dim,
        batch_size=4096,
        epochs=1,
        lr=5e-3,
    )
    dataset = load(config)
    net = build_network(config, dataset.schema)
    layer = net.embedding
    assert isinstance(layer, SupernetEmbedding)
    validation = Validation(net, config, dataset)
    _train(net, layer, dataset)
    population = _last_generation(net, layer, validation)
    space = layer.space()
    ways = {
        "each": layer.scorer(space, validation.__call__),
        "together": layer.scorer(space, validation),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[float]] = {}
    net.eval()
    with torch.inference_mode():
        for _ in range(options.turns):
            for name, score in ways.items():
                began = time.perf_counter()
                found[name] = score(population)
                seconds[name].append(time.perf_counter() - began)
    furthest = max(abs(a - b) for a, b in zip(found["each"], found["together"], strict=True))
    if furthest > _ROUNDING:
        raise fe.RunError(f"{model}: the two ways differ by {furthest}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "settings": MODELS[model],
        "candidates": len(population),
        "columns": round(statistics.mean(sum(one) for one in population)),
        "of": sum(layer.widths),
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["each"] / medians["together"], 2),
    }


_ROUNDING = 1e-4


def _train(net: fe.models.CTRModel, layer: SupernetEmbedding, dataset: Dataset) -> None:
    """Train the supernet for an epoch."""
    staging.begin(net, layer.stages()[0])
    optimizers = fe.optim.build(net, lr=5e-3)
    for step, batch in enumerate(dataset.splits["train"].batches(4096, shuffle=True), start=1):
        inputs = (batch.ids,) if batch.numeric is None else (batch.ids, batch.numeric)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(*inputs), batch.label)
        net.zero_grad()
        (loss + net.penalty()).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        layer.after_step(step)


def _last_generation(
    net: fe.models.CTRModel, layer: SupernetEmbedding, validation: Validation
) -> list[Candidate]:
    """Search; return the candidates that were scored last."""
    calls: list[list[Candidate]] = []

    class Watched:
        def __call__(self) -> float:
            return validation()

        def variants(self, count: int) -> list[float]:
            assert layer.variants is not None
            calls.append(list(layer.variants.widths))
            return validation.variants(count)

    staging.search(net, layer.stages()[1], Watched())
    return calls[-1]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="ml1m")
    parser.add_argument("--dim", type=int, default=30)
    parser.add_argument("--ratio", type=float, default=10)
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models: dict[str, Any] = {}
    for model in options.models:
        models[model] = measure(model, options)
        found = models[model]
        print(f"{model:10} {found['ratio']:6.2f}  {found['seconds']}  {found['columns']} columns")
    record = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "models")},
        "machine": speed.machine(),
        "models": models,
    }
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
