"""The last step: the fingerprint of what was written, and the index that names it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featemb.datasets.bulk.blocks import Work
from featemb.datasets.bulk.fill import digest
from featemb.datasets.bulk.runner import Result, Task
from featemb.datasets.bulk.storage import write_error
from featemb.datasets.bulk.writing import settle
from featemb.datasets.encode import GROUP, checksum
from featemb.datasets.recipe import Recipe
from featemb.datasets.shard_index import FILE, FORMAT
from featemb.files import replacing
from featemb.schema import Feature, Schema

_TOGETHER = 8  # columns whose digests one task makes


def digest_tasks(work: Work, ids: str, splits: Mapping[str, Sequence[Result]]) -> Iterator[Task]:
    """Yield the tasks that make the digests of all columns of all splits.

    Args:
        work: the encoding.
        ids: type of the ids.
        splits: the shards of each split.
    """
    recipe = work.recipe
    form = "<i8" if recipe.hashing is not None else ids
    columns = {c.name: ("ids", n, form) for n, c in enumerate(recipe.categorical)}
    columns |= {c.name: ("numeric", n, "<f4") for n, c in enumerate(recipe.numeric)}
    columns[recipe.label] = ("label", 0, "<i1")
    if recipe.user is not None:
        columns[GROUP] = ("user", 0, "<i8")
    items = list(columns.items())
    for part, shards in splits.items():
        names = [shard["name"] for shard in shards]
        for start in range(0, len(items), _TOGETHER):
            chosen = dict(items[start : start + _TOGETHER])
            yield Task(f"digest-{part}-{start}", digest, (work, part, chosen, names))


def schema_of(recipe: Recipe, cardinalities: Sequence[int]) -> Schema:
    """Return the schema; with hashing, cardinalities are the id space's, or None."""
    if recipe.hashing is not None:
        features = [Feature(column.name, recipe.hashing.size) for column in recipe.categorical]
    else:
        pairs = zip(recipe.categorical, cardinalities, strict=True)
        features = [Feature(column.name, size) for column, size in pairs]
    return Schema(features, [column.name for column in recipe.numeric])


def fingerprint(schema: Schema, digests: Mapping[str, str]) -> str:
    """SHA-256 over schema and encoded values, as `featemb.datasets.shards` makes it."""
    whole = hashlib.sha256(schema.without_counts().to_json().encode())
    for key, one in sorted(digests.items()):
        whole.update(f"{key} {one}\n".encode())
    return whole.hexdigest()


def write_index(folder: Path, document: dict[str, Any]) -> None:
    """Write the index, after all files that it names are safe on the disk.

    Raises:
        DataError: a file cannot be written.
    """
    for part in ("shards", "vocabulary"):
        for path in (folder / part).iterdir():
            settle(path)
    document = {"format": FORMAT, **document}
    document["checksum"] = checksum(document)
    try:
        with replacing(folder / FILE) as temporary:
            temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False), "utf-8")
    except OSError as error:
        raise write_error(folder / FILE, error) from error
