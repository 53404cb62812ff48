"""`Published`: all that pages of results are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featemb.benchmarks.records import read_all, read_tuned
from featemb.benchmarks.report import Row, aggregate
from featemb.errors import RunError
from featemb.schema import Feature, Schema


@dataclass(frozen=True)
class Cost:
    """What a method takes in time, where the full table takes 1.

    Attributes:
        step: a training step.
        lookup: a lookup of a batch in the frozen layers.
    """

    step: float
    lookup: float


@dataclass(frozen=True)
class Published:
    """The results of a sweep.

    Attributes:
        rows: of the report.
        failed: why a run failed, by data set, model, method and size asked.
        schemas: features of each data set.
        dims: width of a feature in each data set's runs.
        costs: by data set, model and method.
        choices: entries of ``tuned.json``.
    """

    rows: tuple[Row, ...]
    failed: Mapping[tuple[str, str, str, str], str]
    schemas: Mapping[str, Schema]
    dims: Mapping[str, int]
    costs: Mapping[tuple[str, str, str], Cost]
    choices: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, runs: Path, costs: Path | None = None) -> Published:
        """Read a folder of runs and a record of `featemb.benchmarks.speed.sweep_costs`.

        Raises:
            RunError: the folder holds no finished runs, or a stale ``paired.json``.
        """
        found = read_all(runs).records
        rows = tuple(aggregate(runs, found.values()))
        if not rows:
            raise RunError(f"{str(runs)!r} holds no finished runs")
        ended = [record for record in found.values() if record["status"] == "ok"]
        known = [record for record in ended if "cardinalities" in record["data"]]
        return cls(
            rows=rows,
            failed=dict(map(_failure, (one for one in found.values() if one not in ended))),
            schemas={one["data"]["name"]: _schema(one) for one in known},
            dims={one["data"]["name"]: one["config"]["dim"] for one in known},
            costs={} if costs is None else _costs(costs),
            choices=tuple(read_tuned(runs)["choices"]),
        )

    def select(self, data: str, model: str, size: str | None = None) -> list[Row]:
        """Return the rows of a data set and model, and of a size or the methods' own."""
        rows = [row for row in self.rows if (row.data, row.model) == (data, model)]
        return [row for row in rows if size is None or row.asked in (size, "-")]


def _failure(record: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], str]:
    config, error = record["config"], record["error"]
    asked = "-" if config["ratio"] is None else f"{config['ratio']:g}x"
    return (config["data"], config["model"], config["method"], asked), error["message"]


def _schema(record: Mapping[str, Any]) -> Schema:
    """Return features of the record's cardinalities; names do not matter for sizes."""
    sizes = record["data"]["cardinalities"]
    return Schema(Feature(f"f{number}", size) for number, size in enumerate(sizes))


def _costs(path: Path) -> dict[tuple[str, str, str], Cost]:
    found = {}
    for name, entry in json.loads(path.read_text("utf-8"))["costs"].items():
        data, model, method = name.split(", ", 2)
        found[data, model, method] = Cost(entry["step"]["ratio"], entry["lookup"]["ratio"])
    return found
