"""Tables of a folder of records of `featemb.benchmarks.drift`.

Run ``python -m featemb.benchmarks.drift_table FOLDER``; it prints Markdown.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featemb.benchmarks.drift import read
from featemb.errors import RunError

Records = list[dict[str, Any]]
HEAD = (
    *("vocabulary", "method", "mean AUC", "first", "last", "of the best", "serving MB, first"),
    *("last", "rows moved a day", "unknown, last day"),
)


def read_all(folder: str | os.PathLike[str]) -> Records:
    """Read the records of a folder, in the order of their names.

    Raises:
        RunError: the folder holds none, or one is not readable.
    """
    found = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise RunError(f"{os.fspath(folder)!r} holds no records of a drift")
    return found


def by_data(records: Records) -> dict[str, list[list[str]]]:
    """Return a table for each data set: a row for what differs in more than the seed."""
    groups: defaultdict[str, defaultdict[tuple[Any, ...], Records]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        config = record["config"]
        rest = {k: v for k, v in config.items() if k not in ("seed", "way", "method", "ratio")}
        rest.pop("window")
        key = (_order(config), config["window"], config["method"], config["ratio"], str(rest))
        groups[record["data"]["name"]][key].append(record)
    return {
        name: [_row(same) for _, same in sorted(found.items(), key=lambda pair: _sortable(pair[0]))]
        for name, found in sorted(groups.items())
    }


def _order(config: dict[str, Any]) -> int:
    return ("rebuilt", "fixed", "raw").index(config["way"])


def _sortable(key: tuple[Any, ...]) -> tuple[Any, ...]:
    way, window, method, ratio, rest = key
    return way, window is not None, window or 0, method, ratio or 0, rest


def _row(records: Records) -> list[str]:
    config, steps = records[0]["config"], records[0]["steps"]
    last = steps[-1]
    moved = [step["rows"]["moved"] for step in steps[1:]]
    best = "-"
    if last["best_auc"] is not None:
        shares = [
            statistics.mean((s["auc"] - 0.5) / (s["best_auc"] - 0.5) for s in one["steps"])
            for one in records
        ]
        best = f"{100 * statistics.mean(shares):.1f}%"
    unknown = last["unknown_share"]
    return [
        _vocabulary(config),
        _method(config),
        _mean([one["mean_auc"] for one in records]),
        _mean([one["steps"][0]["auc"] for one in records]),
        _mean([one["steps"][-1]["auc"] for one in records]),
        best,
        f"{steps[0]['serving_bytes'] / 1e6:.3f}",
        f"{last['serving_bytes'] / 1e6:.3f}",
        f"{statistics.mean(moved):,.0f}" if moved else "-",
        "-" if unknown is None else f"{100 * unknown:.1f}%",
    ]


def _vocabulary(config: dict[str, Any]) -> str:
    if config["way"] == "raw":
        return "none"
    if config["way"] == "fixed":
        return "of the first day"
    days = "all days" if config["window"] is None else f"{config['window']} days"
    return f"rebuilt every day, of {days}"


def _method(config: dict[str, Any]) -> str:
    ratio = config["ratio"]
    return str(config["method"]) + (f", 1/{ratio:g}" if ratio and ratio != 1 else "")


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def markdown(records: Records) -> str:
    """Return the tables as Markdown."""
    lines = []
    for name, rows in by_data(records).items():
        lines += [f"**{name}**", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(read_all(sys.argv[1])))
