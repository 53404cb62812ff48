"""What the speed benchmarks share: turns on one machine, the facts of the machine, the record."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from featemb.errors import RunError
from featemb.files import replacing

T = TypeVar("T")


class Taken(NamedTuple):
    """Seconds of a call: by the clock, and of the processors of all threads."""

    clock: float
    processor: float


def timed(call: Callable[[], object]) -> Taken:
    """Return the seconds of a call."""
    began, busy = time.perf_counter(), time.process_time()
    call()
    return Taken(time.perf_counter() - began, time.process_time() - busy)


def rounds(
    steps: Mapping[str, Callable[[], T]], turns: int, warmup: int = 1, limit: float = math.inf
) -> dict[str, list[T]]:
    """Let steps take turns; return what each gave in the rounds after the first ``warmup``.

    Args:
        steps: what takes turns, by name.
        turns: rounds that count.
        warmup: rounds before them.
        limit: seconds after which no further round begins; one always counts.
    """
    found: dict[str, list[T]] = {name: [] for name in steps}
    began = time.perf_counter()
    for turn in range(warmup + turns):
        if time.perf_counter() - began > limit and all(found.values()):
            break
        for name, step in steps.items():
            taken = step()
            if turn >= warmup:
                found[name].append(taken)
    return found


def take(
    steps: Mapping[str, Callable[[], Taken]],
    turns: int,
    warmup: int = 1,
    limit: float = math.inf,
) -> dict[str, dict[str, float]]:
    """Let steps take turns, as `rounds`.

    Returns:
        Milliseconds of every step by name: ``median`` and ``best`` by the clock, and the median of
        the ``processor``, which other work on the machine disturbs less.
    """
    found = rounds(steps, turns, warmup, limit)
    return {
        "median": _each(found, lambda s: statistics.median(one.clock for one in s)),
        "best": _each(found, lambda s: min(one.clock for one in s)),
        "processor": _each(found, lambda s: statistics.median(one.processor for one in s)),
    }


def _each(found: Mapping[str, list[Taken]], of: Callable[[list[Taken]], float]) -> dict[str, float]:
    return {name: round(1e3 * of(several), 3) for name, several in found.items()}


def apart(module: str, option: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Do a piece of work in a process of its own, which prints its answer as JSON.

    Raises:
        RunError: it failed.
    """
    command = [sys.executable, "-m", module, option, json.dumps(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{wanted} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """Return the facts of the machine that a reader needs to judge clock times."""
    return {
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "load": [round(one, 1) for one in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def save(record: Mapping[str, Any], path: Path | None) -> None:
    """Write a record, whole or not at all; None prints it only."""
    text = json.dumps(record, indent=1)
    if path is None:
        print(text)
        return
    with replacing(path) as part:
        part.write_text(text + "\n", "utf-8")
    print(f"wrote {path}", flush=True)
