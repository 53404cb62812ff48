"""Frappe: app usage with sampled negatives, from the libfm files or a prepared Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from featemb.datasets.frappe_negatives import FIELDS, with_negatives
from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import BATCH_ROWS, Source, parquet
from featemb.errors import DataError

TERMS = "Frappe v1.0: research use with acknowledgement, no redistribution, no commercial use"
_SUMMARY = "a user and an app in a context; label: logged use against sampled negative"


def _recipe(min_count: int, split: SplitRule) -> Recipe:
    return Recipe(
        label="label",
        columns=[Column(name=name) for name in FIELDS],
        min_count=min_count,
        split=split,
        user="user",
    )


@protocol("frappe", _SUMMARY, TERMS)
def prepare(
    root: str | os.PathLike[str] | None = None, min_count: int = 1, seed: int = 0
) -> tuple[Source, Recipe]:
    """``frappe.train.libfm``, ``.validation.libfm`` and ``.test.libfm`` as published, 10 fields.

    From the original ``frappe.csv``, which holds positives only: after each logged use, two
    negatives with the same user and context and apps drawn at random by ``seed`` among those that
    the user did not use in that context (He and Chua, 2017); random 7:2:1. Other negatives than
    the published ones: compare results only on the same files.
    """
    folder = locate(
        root, "frappe", "frappe.train.libfm", "frappe.csv", "Mobile_Frappe/frappe/frappe.csv"
    )
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / "frappe.train.libfm").exists() and (folder / "frappe.csv").exists():
        path = folder / "frappe.csv"
        split = SplitRule(fractions=(0.7, 0.2, 0.1), seed=seed)
        return Source([path], lambda: with_negatives(path, seed)), _recipe(min_count, split)
    names = {"train": "train", "valid": "validation", "test": "test"}
    files = {part: folder / f"frappe.{name}.libfm" for part, name in names.items()}
    for path in files.values():
        if not path.is_file():
            raise DataError(f"there is no file {path.name} in {str(folder)!r}")
    split = SplitRule(rule="column", column="part", values={part: part for part in files})
    return Source(list(files.values()), lambda: _stream(files)), _recipe(min_count, split)


def _stream(files: dict[str, Path]) -> Iterator[pa.RecordBatch]:
    for part, path in files.items():
        with path.open() as file:
            lines: list[str] = []
            for line in file:
                lines.append(line)
                if len(lines) == BATCH_ROWS:
                    yield _batch(part, path, lines)
                    lines = []
            if lines:
                yield _batch(part, path, lines)


def _batch(part: str, path: Path, lines: list[str]) -> pa.RecordBatch:
    rows = [line.replace(":1", "").split() for line in lines]
    try:
        table = np.array(rows, dtype=np.float64).astype(np.int64)
    except ValueError as error:
        raise DataError(
            f"{path.name} is not a libfm file of {len(FIELDS)} fields: {error}"
        ) from error
    if table.shape[1] != 1 + len(FIELDS):
        raise DataError(f"{path.name}: {table.shape[1] - 1} fields a line, expected {len(FIELDS)}")
    columns = {name: pa.array(table[:, 1 + place]) for place, name in enumerate(FIELDS)}
    label = pa.array((table[:, 0] > 0).astype(np.int8))
    return pa.RecordBatch.from_pydict(
        {"label": label, "part": pa.array([part] * len(lines)), **columns}
    )


@protocol("frappe_nfm30", _SUMMARY + "; the published validation and test parts", TERMS)
def prepare_30(
    root: str | os.PathLike[str] | None = None, min_count: int = 1, seed: int = 0
) -> tuple[Source, Recipe]:
    """The published test part tests; of the validation part 10% validates, the rest trains.

    57,722 rows are split so, by ``seed``; the published training part is not in this file.
    """
    path = locate(root, "frappe_nfm30.parquet")
    split = SplitRule(
        rule="column", column="part", values={"train": "valid", "test": "test"}, seed=seed
    )
    return parquet(path), _recipe(min_count, split)
