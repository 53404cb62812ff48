"""How the cost of a step, memory and the time of encoding grow, with fitted exponents.

One number is changed at a time, all others as they are by default; each point is measured in a
process of its own. A step is that of a bare layer (no model): forward, backward, hooks, optimizer,
on ids drawn evenly. Memory is the bytes by count (`layer.memory(optimizers).training`), and beside
it what the process became larger by. An exponent is the slope of a straight line through the
logarithms (least squares), with its 95% interval by Student's t.

Axes: ``rows`` (full table; lazy Adam, and SGD up to 10^8 rows, where Adam's state would not fit),
``features``, ``dim``, ``lookups`` (`unified`), ``bag`` (ids of a multi-valued feature), ``batch``,
and of encoding: ``encode rows``, ``encode features``, ``encode distinct``.

Run ``python -m featemb.benchmarks.speed.growth --out FILE``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.speed.growth_points import POINTS, read

Values = Sequence[int]
AXES: dict[str, tuple[str, str, Values, dict[str, Any]]] = {
    "rows": ("step", "rows", (10**4, 10**5, 10**6, 10**7), {}),
    "rows, SGD": (
        *("step", "rows", (10**4, 10**5, 10**6, 10**7, 10**8)),
        {"optimizer": "row_sgd"},
    ),
    "features": ("step", "features", (10, 26, 100, 250, 500), {"batch": 1024}),
    "dim": ("step", "dim", (4, 8, 16, 32, 64, 128), {}),
    "lookups": ("step", "lookups", (1, 2, 4, 8), {"rows": 100_000}),
    "bag": ("step", "bag", (1, 2, 4, 8), {"batch": 2048}),
    "batch": ("step", "batch", (512, 1024, 2048, 4096, 8192, 16384), {}),
    "encode rows": ("encode", "rows", (10**5, 3 * 10**5, 10**6, 3 * 10**6), {}),
    "encode features": ("encode", "features", (10, 30, 100, 300), {"rows": 10**5}),
    "encode distinct": ("encode", "distinct", (10**2, 10**3, 10**4, 10**5), {}),
}


def fit(values: Sequence[float], costs: Sequence[float]) -> dict[str, Any]:
    """Return the exponent of ``cost ~ value^exponent``, and its 95% interval.

    Args:
        values: three at least.
        costs: of each value.
    """
    line = linregress(np.log(values), np.log(costs))
    reach = float(student.ppf(0.975, len(values) - 2) * line.stderr)
    exponent = float(line.slope)
    interval = [round(exponent - reach, 3), round(exponent + reach, 3)]
    return {"exponent": round(exponent, 3), "interval": interval, "points": len(values)}


def point(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure a point in this process."""
    kind, measure = POINTS[settings["kind"]]
    return measure(read(kind, settings))


def measure(axis: str, most: int, turns: int) -> dict[str, Any]:
    """Measure an axis, up to a value of ``rows``."""
    kind, name, values, rest = AXES[axis]
    points = []
    for value in values:
        if name == "rows" and value > most:
            continue
        settings = {**rest, name: value, "turns": turns}
        points.append(
            {name: value, **speed.apart(__spec__.name, "--point", {"kind": kind, **settings})}
        )
        print(f"{axis} {value:,}: {points[-1]['milliseconds']['median']} ms", flush=True)
    found: dict[str, Any] = {"kind": kind, "of": name, "fixed": rest, "points": points}
    found["time"] = _fitted(points, name, lambda one: one["milliseconds"]["median"])
    if kind == "step":
        found["training_bytes"] = _fitted(points, name, lambda one: one["bytes"]["training"])
    return found


def _fitted(points: list[dict[str, Any]], name: str, cost: Any) -> dict[str, Any] | None:
    if len(points) < 3:
        return None
    return fit([one[name] for one in points], [cost(one) for one in points])


def largest(axis: dict[str, Any]) -> dict[str, Any]:
    """Return what the largest table takes beside its bytes by count."""
    last = axis["points"][-1]
    weights = last["parts"]["rows"]
    state = last["parts"].get("optimizer state", 0)
    return {
        "rows": last["rows"],
        "bytes": weights + state,
        "resident_bytes": last["resident_bytes"],
        "peak_bytes": last["peak_bytes"],
        "resident_ratio": round(last["resident_bytes"] / (weights + state), 4),
        "peak_ratio": round(last["peak_bytes"] / (weights + state), 4),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=sorted(AXES), default=list(AXES))
    parser.add_argument("--most-rows", type=int, default=10**8)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--point", help="what one process measures, as JSON")
    options = parser.parse_args()
    if options.point is not None:
        print(json.dumps(point(json.loads(options.point))))
        return
    axes = {axis: measure(axis, options.most_rows, options.turns) for axis in options.axes}
    record: dict[str, Any] = {
        "settings": {"turns": options.turns, "most_rows": options.most_rows},
        "machine": speed.machine(),
        "axes": axes,
    }
    if "rows, SGD" in axes:
        record["largest_table"] = largest(axes["rows, SGD"])
    speed.save(record, options.out)


if __name__ == "__main__":
    main()
