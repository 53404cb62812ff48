"""Latencies of several runners that take turns on batches that are drawn anew for each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from featemb.benchmarks import environment
from featemb.benchmarks.serving.resident import Arrays, Runner

Seconds = dict[str, list[float]]


def take_turns(
    runners: Mapping[str, Runner],
    draw: Callable[[int], Arrays],
    batch: int,
    rounds: int,
    warmup: int,
    device: str,
    seed: int = 0,
) -> Seconds:
    """Return the seconds of every call.

    In a round every runner answers once, in an order that is drawn anew, so that a noisy machine
    disturbs all alike and none is always the one after the largest. No two calls see the same
    batch: rows are as cold as the ids make them.

    Args:
        runners: by name.
        draw: batch size -> a batch.
        batch: samples a call.
        rounds: calls of each runner that count.
        warmup: calls of each before.
        device: waited for before and after a call.
        seed: of the order.
    """
    order = torch.Generator().manual_seed(seed)
    names = list(runners)
    seconds: Seconds = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for place in torch.randperm(len(names), generator=order).tolist():
            runner = runners[names[place]]
            inputs = runner.prepare(draw(batch))
            environment.synchronize(device)
            began = time.perf_counter()
            runner.call(inputs)
            environment.synchronize(device)
            if turn >= warmup:
                seconds[names[place]].append(time.perf_counter() - began)
    return seconds


def summary(seconds: Seconds, batch: int, reference: str | None) -> dict[str, dict[str, Any]]:
    """Return latencies in milliseconds, rows a second, and how many times as fast as a reference.

    Args:
        seconds: of the calls of every runner, in rounds.
        batch: samples a call.
        reference: name of the runner to compare with; None: none.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        own = np.array(values)
        found[name] = {
            "p50_ms": _rounded(1e3 * np.percentile(own, 50)),
            "p99_ms": _rounded(1e3 * np.percentile(own, 99)),
            "best_ms": _rounded(1e3 * own.min()),
            "rows_per_second": round(batch * len(own) / own.sum()),
        }
        if reference is not None:
            base = np.array(seconds[reference])
            found[name]["speedup_of_medians"] = _rounded(np.median(base) / np.median(own))
            found[name]["speedup_of_best"] = _rounded(base.min() / own.min())
            found[name]["speedup_in_rounds"] = _rounded(np.median(base / own))
    return found


def _rounded(value: Any) -> float:
    return round(float(value), 4)
