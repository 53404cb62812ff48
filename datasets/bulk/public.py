"""`encode`: any data set, or a user's own files, into a folder of shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from featemb.budget import parse_bytes
from featemb.datasets.bulk.encode import Report, encode_shards
from featemb.datasets.bulk.limits import DEFAULT
from featemb.datasets.hashed import Hashing
from featemb.datasets.infer import described
from featemb.datasets.recipe import Recipe
from featemb.datasets.registry import names, prepared
from featemb.datasets.shard_index import Index
from featemb.errors import DataError, nearest


def encode(
    name: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    schema: str | os.PathLike[str] | None = None,
    label: str | None = None,
    recipe: Recipe | None = None,
    hashing: Hashing | None = None,
    workers: int | None = None,
    memory: int | str = DEFAULT,
    report: Report | None = None,
    **options: Any,
) -> Index:
    """Encode a data set of any size into a folder of memory-mappable, checksummed shards.

    Ids, counts and numbers are those of `featemb.datasets.load`. What is done before a kill, a full
    disk or a corrupt row is kept in ``<out>.partial``; the same call goes on from there. Free disk
    of about three times the result is needed.

    Args:
        name: a registered name, or the path of a Parquet, CSV or TSV file, or several such paths.
        out: the folder; one that holds the same already is left alone.
        root: folder of a registered set's original files, or the file itself.
        schema: for paths: a recipe's JSON file, as `infer` writes it.
        label: for paths: the label's column, from which a recipe is inferred.
        recipe: for paths: the recipe itself.
        hashing: makes ids by a hash, without vocabularies.
        workers: number of processes; None is the number of processors, fewer where the memory does
            not suffice.
        memory: bytes that all processes together may hold (resident), as 4_000_000_000 or "4GB",
            at least 1 GiB.
        report: told the step, tasks done, and tasks in all, where known.
        options: of the registered data set; for paths without a recipe, of `infer`.

    Raises:
        DataError: the data are missing or malformed (file and line are named), the disk is full, an
            option is unknown, or ``out`` holds something else.
    """
    if isinstance(name, (str, os.PathLike)) and os.fspath(name) in names():
        if schema is not None or label is not None or recipe is not None:
            raise DataError(
                f"{name!r} has its own protocol: schema, label and recipe are for files"
            )
        source, found, meta = prepared(os.fspath(name), root, options)
    else:
        if isinstance(name, str) and not os.path.exists(name):
            raise DataError(f"{name!r} is neither a data set nor a file; {nearest(name, names())}")
        source, found, meta = described(name, schema, label, recipe, options)
    if hashing is not None:
        found = replace(found, hashing=hashing)
    return encode_shards(
        source,
        found,
        out,
        workers=workers,
        memory=parse_bytes(memory),
        meta=meta,
        report=report,
    )
