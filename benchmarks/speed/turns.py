"""What the speed benchmarks share: turns on one machine, the facts of the machine, the record."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from featemb.files import replacing


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def take(steps: Mapping[str, Callable[[], float]], turns: int, warmup: int) -> dict[str, Any]:
    """Let steps take turns; each returns its seconds. The first ``warmup`` rounds do not count.

    Returns:
        Milliseconds of every step, ``median`` and ``best`` by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + turns):
        for name, step in steps.items():
            taken = step()
            if turn >= warmup:
                seconds[name].append(taken)
    return {
        "median": {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()},
        "best": {name: round(1e3 * min(s), 3) for name, s in seconds.items()},
    }


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
