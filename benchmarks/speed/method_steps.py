"""What a training step of every method costs, as a multiple of the full table's.

DeepFM with the lazy `RowAdam`; a method and the full table take turns step by step in one process,
on the same ids. Run ``python -m featemb.benchmarks.speed.method_steps --out FILE``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import featemb as fe
from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.speed.training_step import make_step, schema_of

_SLOW_SECONDS = 3.0


def measure(spec: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of a method's steps and of the full table's between them.

    Raises:
        BudgetError: the method cannot get as small as asked.
    """
    schema = schema_of(options.rows, options.features)
    layer = fe.embedding(schema, spec, dim=options.dim, ratio=options.ratio)
    steps = {
        "full": make_step(
            fe.embedding(schema, "full", dim=options.dim), schema, options.batch, False
        ),
        spec: make_step(layer, schema, options.batch, False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    turns = options.turns
    for turn in range(options.warmup + turns):
        for name, step in steps.items():
            taken = step()
            if turn >= options.warmup or taken > _SLOW_SECONDS:
                seconds[name].append(taken)
        if seconds[spec] and seconds[spec][-1] > _SLOW_SECONDS and turn >= options.slow_turns:
            break
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    full = medians.get("full") or steps["full"]()
    return {
        "spec": str(fe.Spec(layer.config)),
        "steps": len(seconds[spec]),
        "milliseconds": round(1e3 * medians[spec], 1),
        "full_milliseconds": round(1e3 * full, 1),
        "ratio": round(medians[spec] / full, 2),
        "ratio_of_best": round(min(seconds[spec]) / min(seconds["full"] or [full]), 2),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=[m for m in fe.methods() if m != "full"])
    parser.add_argument("--ratio", type=float, default=10)
    parser.add_argument("--rows", type=int, default=2_600_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--slow-turns", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    methods: dict[str, Any] = {}
    for spec in options.methods:
        methods[spec] = measure(spec, options)
        print(f"{spec:40} {methods[spec]['ratio']:6.2f}  {methods[spec]['milliseconds']:8.1f} ms")
    record = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "methods")},
        "machine": speed.machine(),
        "methods": methods,
    }
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
