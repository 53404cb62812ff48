"""Comparisons of groups of runs, from their predictions: what is held against what, and how."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from featemb.benchmarks.groups import REFERENCES, Group, Record, reference_of
from featemb.benchmarks.paired import (
    Estimate,
    Scored,
    auc_parts,
    estimate,
    gauc_parts,
    logloss_parts,
)
from featemb.errors import RunError

_KEPT = 16  # runs whose rows stay in memory: references are used again and again


@dataclass(frozen=True)
class Pairing:
    """Two groups that are compared, first minus second, over the seeds that both have.

    Attributes:
        data: data set of the first.
        model: its model.
        method: its spec text.
        asked: its size in words.
        reference: "full" or "hash", what the second is.
        seeds: seeds of the pairs.
        runs: run ids of the first, one a seed.
        reference_runs: run ids of the second.
    """

    data: str
    model: str
    method: str
    asked: str
    reference: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    reference_runs: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """What a comparison gave.

    Attributes:
        auc: difference in AUC; None where the runs cannot be paired.
        logloss: difference in LogLoss, likewise.
        gauc: difference in gAUC; None also where the data have no users.
        reason: why the runs cannot be paired, or "".
    """

    auc: Estimate | None = None
    logloss: Estimate | None = None
    gauc: Estimate | None = None
    reason: str = ""

    def reversed(self) -> Compared:
        """Return the comparison the other way round."""
        auc, logloss, gauc = (one and one.reversed() for one in (self.auc, self.logloss, self.gauc))
        return Compared(auc, logloss, gauc, self.reason)


def pairings(groups: Sequence[Group]) -> list[Pairing]:
    """Return what the groups of a folder are held against, by data set, model and size."""
    found = []
    for group in sorted(groups, key=lambda one: (one.data, one.model, one.asked, one.method)):
        for name in REFERENCES:
            other = reference_of(group, name, groups)
            if other is not None:
                found.append(pairing(group, other, name))
    return found


def pairing(first: Group, second: Group, reference: str) -> Pairing:
    """Return the pairs of two groups by seed."""
    seeds = first.shared_seeds(second)
    named = (first.data, first.model, first.method, first.asked, reference)
    return Pairing(*named, seeds, first.names(seeds), second.names(seeds))


@dataclass(frozen=True)
class Tested:
    """A run's test rows: their metrics by row, and a digest of row numbers and labels."""

    auc: Scored
    logloss: Scored
    gauc: Scored | None
    digest: str


class Predictions:
    """The predictions of a folder's runs, read when used; the last ones stay in memory.

    Args:
        folder: of the runs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._kept: OrderedDict[str, Tested] = OrderedDict()

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these runs have predictions."""
        return all((self.folder / name / "predictions.parquet").is_file() for name in names)

    def tested(self, name: str) -> Tested:
        """Return a run's test rows.

        Raises:
            RunError: the run has no readable predictions.
        """
        if name not in self._kept:
            self._kept[name] = read_tested(self.folder / name)
        self._kept.move_to_end(name)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[name]

    def compare(self, pair: Pairing) -> Compared:
        """Compare two groups; runs on other test rows give a reason and no estimate."""
        first = [self.tested(name) for name in pair.runs]
        second = [self.tested(name) for name in pair.reference_runs]
        if len({one.digest for one in (*first, *second)}) > 1:
            return Compared(reason="not tested on the same rows")
        return compare_tested(first, second)


def compare_tested(first: Sequence[Tested], second: Sequence[Tested]) -> Compared:
    """Return the differences of runs on the same rows, paired in order."""
    both = list(zip(first, second, strict=True))
    by_user = [a.gauc - b.gauc for a, b in both if a.gauc is not None and b.gauc is not None]
    return Compared(
        auc=estimate([a.auc - b.auc for a, b in both]),
        logloss=estimate([a.logloss - b.logloss for a, b in both]),
        gauc=estimate(by_user) if len(by_user) == len(both) else None,
    )


def read_tested(folder: str | Path) -> Tested:
    """Read a run's predictions.

    Raises:
        RunError: there are none, or they are not readable.
    """
    path = Path(folder) / "predictions.parquet"
    if not path.is_file():
        raise RunError(f"{path.parent} has no predictions: they were left out, or the run failed")
    try:
        table = pq.read_table(path)
        column = {name: table.column(name).to_numpy() for name in table.column_names}
        label, score = column["label"], column["score"].astype(np.float64)
        row = column["row"].astype(np.int64)
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{path} is not readable: {error}") from error
    digest = hashlib.sha256(row.tobytes() + label.astype(np.int8).tobytes()).hexdigest()
    groups = column.get("group")
    by_user = None if groups is None else gauc_parts(label, score, groups)
    return Tested(auc_parts(label, score), logloss_parts(label, score), by_user, digest)


def changes_of(record: Record, other: Record, name: str) -> float:
    """Return the difference of a metric of two records, as the runs themselves measured it."""
    one: dict[str, Any] = record["metrics"]["test"]
    two: dict[str, Any] = other["metrics"]["test"]
    return float(one[name]["value"] - two[name]["value"])
