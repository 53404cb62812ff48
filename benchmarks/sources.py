"""The data of a run: loaded once a process, named by content rather than by place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featemb.benchmarks.config import RunConfig
from featemb.datasets import Dataset, Recipe, Split, names
from featemb.datasets import load as load_dataset
from featemb.datasets.shard_index import FILE as INDEX
from featemb.datasets.shard_index import is_sharded
from featemb.errors import DataError, nearest
from featemb.files import replacing

# Options of `featemb.datasets.load` that say where files are, not what they hold.
_PLACES = ("root", "cache", "schema", "check")


def identity(config: RunConfig) -> dict[str, Any]:
    """Return a run's settings with its files replaced by their names and content digests."""
    settings = config.identity()
    options = dict(config.data_options)
    if config.data not in names():
        settings["data"] = Path(config.data).stem
        settings["data_sha256"] = file_digest(config.data)
    if options.get("schema") is not None:
        settings["schema_sha256"] = file_digest(str(options["schema"]))
    settings["data_options"] = {k: v for k, v in options.items() if k not in _PLACES}
    return settings


def file_digest(path: str) -> str:
    """SHA-256 of a file's content (of names and sizes inside, for a folder), 16 hex digits.

    Raises:
        DataError: there is no such file.
    """
    _require_known(path)
    stat = (Path(path) / INDEX if is_sharded(path) else Path(path)).stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _digest(path: str, _modified: int, _size: int) -> str:
    digest = hashlib.sha256()
    if is_sharded(path):
        digest.update((Path(path) / INDEX).read_bytes())  # it holds the checksums of all files
    elif Path(path).is_dir():
        for inner in sorted(one for one in Path(path).rglob("*") if one.is_file()):
            digest.update(f"{inner.relative_to(path)} {inner.stat().st_size}\n".encode())
    else:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _require_known(data: str) -> None:
    if data not in names() and not Path(data).exists():
        raise DataError(f"{data!r} is neither a data set nor a file; {nearest(data, names())}")


def load(config: RunConfig) -> Dataset:
    """Load a run's data; the last two data sets of this process are kept.

    Raises:
        DataError: the data are missing or malformed, or have unbounded features.
    """
    _require_known(config.data)
    settings = identity(config)
    digests = (settings.get("data_sha256"), settings.get("schema_sha256"))
    return _load(config.data, json.dumps(dict(config.data_options), sort_keys=True), digests)


@lru_cache(maxsize=2)
def _load(data: str, options: str, _digests: tuple[str | None, ...]) -> Dataset:
    settings: Mapping[str, Any] = json.loads(options)
    dataset = load_dataset(data, **settings)
    if not dataset.schema.bounded:
        raise DataError(
            f"{data}: its ids are hashed without a bound, so no run can say its ratio to a plain "
            "table: encode with a size (featemb data encode --hash --hash-size N), or use fe.fit"
        )
    return dataset


def save_recipe(dataset: Dataset, path: Path) -> None:
    """Write how a table became ids, to edit and to use again as its schema; atomically.

    Raises:
        DataError: the data set is not encoded from a table.
    """
    recipe = dataset.meta.get("recipe")
    if recipe is None:
        raise DataError(f"{dataset.name} is not made from a table: it has no schema to save")
    with replacing(path) as temporary:
        temporary.write_text(Recipe.from_json(json.dumps(recipe)).to_json() + "\n", "utf-8")


def subsample(dataset: Dataset, rows: int | None, seed: int) -> Dataset:
    """Return the data with a random part of the training rows, and the counts of those rows.

    Raises:
        DataError: the training split has fewer rows.
    """
    train = dataset.splits["train"]
    if rows is None:
        return dataset
    if rows > len(train):
        raise DataError(f"rows={rows}: the training split of {dataset.name} has {len(train)} rows")
    kept = np.random.default_rng(seed).permutation(len(train))[:rows]
    part = train.take(torch.from_numpy(np.sort(kept)))
    return replace(
        dataset,
        schema=dataset.schema.with_counts(_counts(part, dataset)),
        splits={**dataset.splits, "train": part},
    )


def _counts(part: Split, dataset: Dataset) -> dict[str, npt.NDArray[np.int64]]:
    """Count the ids of each feature; hashed ids have no counts."""
    if dataset.encoding is not None and dataset.encoding.recipe.hashing is not None:
        return {}
    counts = {}
    for f, (name, cardinality) in enumerate(
        zip(dataset.schema.names, dataset.schema.cardinalities, strict=True)
    ):
        ids = part.bags[f].values if part.ids is None else part.ids[:, f]
        counts[name] = np.bincount(ids.numpy(), minlength=cardinality)
    return counts


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return what a record says of its data."""
    schema = dataset.schema
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "rows": {part: len(split) for part, split in dataset.splits.items()},
        "features": schema.num_features,
        "values": sum(schema.cardinalities),
        "cardinalities": list(schema.cardinalities),
    }


def predictions(split: Split, score: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the columns of ``predictions.parquet``."""
    columns: dict[str, Any] = {
        "row": np.arange(len(split), dtype=np.int64),
        "label": split.label.numpy().astype(np.int8),
        "score": score,
    }
    if split.user is not None:
        columns["group"] = np.asarray(split.user, dtype=np.int64)
    return columns
