"""Runs against the full table on the same test rows: paired tests from their predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featemb.benchmarks import stats
from featemb.benchmarks.grid import REFERENCE

# What the reference of a run shares with it.
_SAME = ("data", "model", "dim", "seed", "rows")


@dataclass(frozen=True)
class AgainstFull:
    """A run's test AUC minus the full table's, same data, model, width and seed.

    Attributes:
        delong: with DeLong's interval and p-value.
        bootstrap: with those of a paired bootstrap over rows.
    """

    delong: stats.Difference
    bootstrap: stats.Difference


def against_full(found: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, AgainstFull]:
    """Compare finished runs of a folder with their references; by run id.

    Runs without a reference on the same rows are left out.
    """
    full = references(found)
    compared = {}
    for record in found:
        reference = full.get(reference_key(record))
        if reference is None or reference is record:
            continue
        label, score = stats.predictions(folder / record["run_id"])
        same, full_score = stats.predictions(folder / reference["run_id"])
        if np.array_equal(label, same):
            compared[record["run_id"]] = AgainstFull(
                stats.delong(label, score, full_score),
                stats.bootstrap_auc(label, score, full_score),
            )
    return compared


def references(found: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """Return the full tables' records among finished ones, by `reference_key`."""
    full = (record for record in found if record["config"]["method"] == REFERENCE)
    return {reference_key(record): record for record in full}


def reference_key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a run and its reference have in common: data, model, width, seed, rows."""
    config = record["config"]
    return (record["data"]["fingerprint"], *(config[name] for name in _SAME))
