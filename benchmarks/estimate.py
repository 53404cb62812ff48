"""How long the runs of a sweep will take: as those that are done, else by a few timed steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from featemb import staging
from featemb.benchmarks import records, sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import predict
from featemb.benchmarks.network import build_network
from featemb.benchmarks.run import run_id
from featemb.benchmarks.stepping import Stepper
from featemb.datasets import Dataset
from featemb.errors import BudgetError
from featemb.models import CTRModel

_WARM_UP, _TIMED = 2, 4
_Kind = tuple[str, str, str]


@dataclass(frozen=True)
class Estimate:
    """What is left of a sweep.

    Attributes:
        runs: number of runs to do.
        seconds: of them all, one after another, where every kind of run could be judged.
        measured: runs that are judged by recorded runs of the same data, model and method.
        probed: runs that are judged by a few timed training steps.
        unknown: runs that nothing judges.
    """

    runs: int
    seconds: float
    measured: int
    probed: int
    unknown: int

    def text(self, jobs: int = 1) -> str:
        """Say it in a line."""
        line = f"{self.runs} runs to do"
        if not self.runs:
            return line
        if self.unknown < self.runs:
            minutes = self.seconds / jobs / 60
            length = f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
            line += f": about {length} in {jobs} process{'es' * (jobs > 1)}"
            judged = {"as runs that are done": self.measured, "by timed steps": self.probed}
            line += f" ({', '.join(f'{n} {how}' for how, n in judged.items() if n)})"
        if self.unknown:
            line += f"; {self.unknown} of unknown length"
        return line


def estimate(todo: Sequence[RunConfig], done: Iterable[Path] = (), probe: bool = False) -> Estimate:
    """Estimate what runs will take.

    Args:
        todo: the runs to do.
        done: folders of finished runs, to judge by.
        probe: whether a kind of run that no record judges is built and trained for some steps.
    """
    known = _recorded(done)
    seconds, counts = 0.0, {"measured": 0, "probed": 0, "unknown": 0}
    probes: dict[tuple[_Kind, float | None], float] = {}
    for config in todo:
        kind = (config.data, config.model, config.method)
        if kind in known:
            counts["measured"] += 1
            seconds += statistics.mean(known[kind])
        elif probe:
            key = (kind, config.ratio)
            if key not in probes:
                probes[key] = probed_seconds(config)
            counts["probed"] += 1
            seconds += probes[key]
        else:
            counts["unknown"] += 1
    return Estimate(len(todo), seconds, **counts)


def to_do(
    configs: Iterable[RunConfig], folder: Path, retry_failed: bool = False
) -> tuple[list[RunConfig], list[Path]]:
    """Divide runs into those to do, and the folders of those that are finished."""
    left, done = [], []
    for config in configs:
        name = run_id(config)
        status = records.status(folder, name)
        if status == "ok":
            done.append(folder / name)
        elif status is None or retry_failed:
            left.append(config)
    return left, done


def _recorded(done: Iterable[Path]) -> dict[_Kind, list[float]]:
    """Return the seconds of finished runs by data, model and method."""
    found: dict[_Kind, list[float]] = {}
    for folder in done:
        record = records.read(folder)
        config = record["config"]
        kind = (config["data"], config["model"], config["method"])
        found.setdefault(kind, []).append(record["timings"]["total"])
    return found


def probed_seconds(config: RunConfig) -> float:
    """Time some steps of a run's first stage and one evaluation, and multiply.

    Stages are counted with all their epochs, as if none stopped early; searches are not counted.
    A method that cannot get as small as asked takes no time.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = sources.subsample(sources.load(config), config.rows, config.seed)
    try:
        net = build_network(config, dataset.schema)
    except BudgetError:
        return 0.0
    stages = [stage for stage in staging.stages(net) if stage.kind == "train"]
    epochs = sum(stage.epochs or config.epochs for stage in stages)
    steps = math.ceil(len(dataset.splits["train"]) / config.batch_size)
    step = _step_seconds(net, config, dataset)
    began = time.perf_counter()
    net.eval()
    valid = dataset.splits["valid"]
    rows = torch.arange(min(len(valid), config.eval_batch_size))
    predict(net, valid.take(rows), config.eval_batch_size, torch.device(config.device))
    evaluation = (time.perf_counter() - began) * len(valid) / len(rows)
    return epochs * (steps * step + evaluation)


def _step_seconds(net: CTRModel, config: RunConfig, dataset: Dataset) -> float:
    """Train for some steps; return the median time of a step."""
    step = Stepper(net, config, dataset)
    times = [step() for _ in range(_WARM_UP + _TIMED)]
    return statistics.median(times[_WARM_UP:])
