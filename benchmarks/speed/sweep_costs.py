"""What the methods of a sweep cost in a training step and in a lookup, where the full table is 1.

Every method is built as the sweep builds it, on the sweep's data, at one compression ratio. It
takes turns with the full table in one process, on batches of the same rows:

- step: forward, backward and optimizer of the whole network, first stage;
- lookup: the frozen embedding layers alone.

Run ``python -m featemb.benchmarks.speed.sweep_costs SWEEP.toml --ratio 10 --out FILE``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from featemb import staging
from featemb.benchmarks import sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.grid import REFERENCE, grids
from featemb.benchmarks.network import build_network
from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.stepping import Stepper
from featemb.datasets import Dataset
from featemb.errors import BudgetError
from featemb.models import CTRModel

_WARM_UP = 2


def measure(config: RunConfig, full: RunConfig, turns: int) -> dict[str, Any]:
    """Return medians in milliseconds of a run's steps and lookups, and ratios to the full table's.

    Raises:
        BudgetError: the method cannot get as small as asked.
    """
    dataset = sources.load(config)
    nets = {name: build_network(one, dataset.schema) for name, one in _named(config, full)}
    steps = {name: Stepper(nets[name], one, dataset) for name, one in _named(config, full)}
    lookups = {name: _lookup(net, config, dataset) for name, net in nets.items()}
    found: dict[str, Any] = {"serving": nets["method"].memory().serving}
    for kind, variants in (("lookup", lookups), ("step", steps)):
        times: dict[str, list[float]] = speed.rounds(variants, turns, _WARM_UP)
        found[kind] = {
            "milliseconds": round(1e3 * statistics.median(times["method"]), 3),
            "ratio": round(
                statistics.median(m / f for m, f in zip(*times.values(), strict=True)), 3
            ),
        }
    return found


def _named(config: RunConfig, full: RunConfig) -> Iterable[tuple[str, RunConfig]]:
    return (("method", config), ("full", full))


def _lookup(net: CTRModel, config: RunConfig, dataset: Dataset) -> Callable[[], float]:
    """Return a timed lookup of a batch of the frozen layers."""
    frozen = [layer.freeze() for layer in staging.layers(net)]
    batch = next(
        iter(dataset.splits["test"].batches(config.batch_size, device=torch.device(config.device)))
    )

    def timed() -> float:
        with torch.inference_mode():
            began = time.perf_counter()
            for layer in frozen:
                layer(batch.ids)
            return time.perf_counter() - began

    return timed


def pairs(sweep: Path, ratio: float) -> dict[str, tuple[RunConfig, RunConfig]]:
    """Return each method's run at a ratio, or at its own size, and its full table's."""
    runs = [run for grid in grids(sweep) for run in grid.runs() if run.seed == grid.seeds[0]]
    full = {(run.data, run.model): run for run in reversed(runs) if run.method == REFERENCE}
    return {
        f"{run.data}, {run.model}, {run.method}": (run, full[run.data, run.model])
        for run in runs
        if run.ratio in (ratio, None) and run.method != REFERENCE
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--ratio", type=float, default=10)
    parser.add_argument("--data", help="this data set alone")
    parser.add_argument("--model", help="this model alone")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    costs: dict[str, Any] = {}
    for name, (config, full) in pairs(options.sweep, options.ratio).items():
        if options.data in (None, config.data) and options.model in (None, config.model):
            try:
                costs[name] = measure(config, full, options.turns)
            except BudgetError as error:
                print(f"{name:48} {error}", flush=True)
                continue
            step, lookup = (costs[name][kind]["ratio"] for kind in ("step", "lookup"))
            print(f"{name:48} step {step:7.2f}  lookup {lookup:7.2f}", flush=True)
    settings = {"ratio": options.ratio, "turns": options.turns}
    record = {"settings": settings, "machine": speed.machine(), "costs": costs}
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
