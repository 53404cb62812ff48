"""What it costs to score a population of architectures: one pass for all against a pass for each.

OptEmbed's candidates (rows and widths) over random ids, with several models. A pass reads all
validation rows and ends with the AUC of each candidate. Both ways give the same scores; they take
turns in one process. Run ``python -m featemb.benchmarks.speed.search_scoring --out FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import featemb as fe
from featemb.benchmarks import metrics
from featemb.benchmarks.speed.training_step import schema_of
from featemb.evolution import Candidate, Evolution, evolve
from featemb.methods.optembed import OptEmbedLayer
from featemb.ragged_space import RaggedSpace

MODELS: dict[str, dict[str, Any]] = {
    "fm": {},
    "dlrm": {"bottom": [], "hidden": [64], "batch_norm": False},
    "dcnv2": {"cross_layers": 1, "hidden": [64], "low_rank": 16},
    "deepfm": {"hidden": [192]},
}


class Rows(NamedTuple):
    """Validation rows."""

    ids: Tensor
    numeric: None
    label: Tensor


def auc(label: Tensor, logits: Tensor) -> float:
    """The harness's AUC."""
    return metrics.auc(label.numpy(), logits.numpy())


def generation(space: RaggedSpace, count: int) -> list[Candidate]:
    """Return the candidates of a search's second generation, all scores being equal."""
    calls: list[list[Candidate]] = []

    def score(candidates: list[Candidate]) -> list[float]:
        calls.append(candidates)
        return [0.0] * len(candidates)

    settings = Evolution(2, count - count // 2, count // 2, count)
    evolve(space.first(count, 0), space.gene, space.repair, score, settings, 0)
    return calls[-1]


def measure(model: str, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a population scored by a pass each and in one pass, in turns."""
    schema = schema_of(options.rows, options.features)
    layer = fe.embedding(schema, "optembed", dim=options.dim, ratio=10)
    assert isinstance(layer, OptEmbedLayer)
    net = fe.models.build(model, embedding=layer, **settings).eval()
    source = torch.Generator().manual_seed(0)
    ids = torch.stack(
        [torch.randint(n, (options.valid,), generator=source) for n in schema.cardinalities], 1
    )
    label = (torch.rand(options.valid, generator=source) < 0.3).float()
    layer.stage = "search"
    layer.entered()
    scores = layer.net.scores(schema.cardinalities)
    space = RaggedSpace(layer._size(), layer.dim, layer._limit, scores, rows=True)
    population = generation(space, options.count)

    def batches(size: int) -> Callable[[], Iterator[Rows]]:
        return lambda: (
            Rows(ids[at : at + size], None, label[at : at + size])
            for at in range(0, options.valid, size)
        )

    single = fe.Evaluator(net, batches(options.batch), auc)
    many = fe.Evaluator(net, batches(max(1024, options.batch // 4)), auc)
    ways = {
        "each": layer._scorer(space, single.__call__),
        "together": layer._scorer(space, many),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for _ in range(options.turns):
            for name, score in ways.items():
                began = time.perf_counter()
                found[name] = score(population)
                layer.net.variants = None  # type: ignore[misc]
                seconds[name].append(time.perf_counter() - began)
    furthest = max(abs(a - b) for a, b in zip(found["each"], found["together"], strict=True))
    if furthest > 1e-5:
        raise fe.RunError(f"{model}: the two ways differ by {furthest}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "ratio": round(medians["each"] / medians["together"], 2),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=26_000_000)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--valid", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models: dict[str, Any] = {}
    for model in options.models:
        models[model] = {"settings": MODELS[model]} | measure(model, MODELS[model], options)
        print(f"{model:10} {models[model]['ratio']:6.2f}  {models[model]['seconds']}")
    record = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "models")},
        "machine": {
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
        },
        "models": models,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
