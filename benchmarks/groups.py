"""Runs that differ in nothing but their seed, taken together, and the references they have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featemb.benchmarks.grid import REFERENCE

Record = Mapping[str, Any]
BASELINE = "hash"
# What results are held against: the full table, and the plain baseline of the same size.
REFERENCES = (REFERENCE, BASELINE)
_NAMED = ("data", "model", "method", "ratio", "budget", "seed")


@dataclass(frozen=True)
class Group:
    """The finished runs of one data set, model, method, size and settings, over their seeds.

    Attributes:
        data: data set.
        model: model.
        method: spec text.
        asked: size asked for: "10x", "2 MB" or "-".
        settings: all other settings of the runs, as JSON text.
        fingerprint: of the data.
        runs: records by seed, in order.
    """

    data: str
    model: str
    method: str
    asked: str
    settings: str
    fingerprint: str
    runs: Mapping[int, Record]

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the first run."""
        config: Mapping[str, Any] = next(iter(self.runs.values()))["config"]
        return config

    def names(self, seeds: Iterable[int] | None = None) -> tuple[str, ...]:
        """Return the run ids of some seeds, of all of them by default."""
        return tuple(self.runs[seed]["run_id"] for seed in (self.runs if seeds is None else seeds))

    def shared_seeds(self, other: Group) -> tuple[int, ...]:
        """Return the seeds that both have; run pairs of equal seed share data order and start."""
        return tuple(seed for seed in self.runs if seed in other.runs)


def asked_size(config: Mapping[str, Any]) -> str:
    """Return the size that a run was asked for, in words."""
    if config.get("ratio") is not None:
        return f"{config['ratio']:g}x"
    if config.get("budget") is not None:
        return f"{config['budget'] / 1e6:g} MB"
    return "-"


def group_runs(found: Iterable[Record]) -> list[Group]:
    """Return the groups of finished runs, in the order of their first runs."""
    groups: dict[tuple[str, str, str, str, str, str], dict[int, Record]] = {}
    for record in found:
        if record["status"] == "ok":
            config = record["config"]
            rest = {name: value for name, value in config.items() if name not in _NAMED}
            key = (
                *(config["data"], config["model"], config["method"], asked_size(config)),
                *(json.dumps(rest, sort_keys=True), record["data"]["fingerprint"]),
            )
            groups.setdefault(key, {})[config["seed"]] = record
    return [Group(*key, dict(sorted(runs.items()))) for key, runs in groups.items()]


def reference_of(group: Group, name: str, groups: Sequence[Group]) -> Group | None:
    """Return the group that a group is held against; None for the reference itself, or for none.

    The full table has its own size, any other reference the size of the group. Data, model, width
    and training rows are the same. Of several, the one with most seeds in common is taken, then
    the one with most settings in common.
    """
    size = "-" if name == REFERENCE else group.asked
    fits = [
        one
        for one in groups
        if (one.method, one.asked) == (name, size)
        and (one.fingerprint, one.data, one.model) == (group.fingerprint, group.data, group.model)
        and all(one.config[key] == group.config[key] for key in ("dim", "rows"))
        and one.shared_seeds(group)
    ]
    if (group.method, group.asked) == (name, size) or not fits:
        return None

    def nearness(one: Group) -> tuple[int, int, tuple[str, ...]]:
        return len(one.shared_seeds(group)), _alike(one, group), one.names()

    return max(fits, key=nearness)


def _alike(one: Group, other: Group) -> int:
    """Return how many settings two groups share."""
    return sum(value == other.config.get(name) for name, value in one.config.items())
