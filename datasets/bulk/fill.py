"""Second pass: a stretch of blocks becomes shards, one a split that has rows there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featemb.datasets.bulk.blocks import USERS, Work
from featemb.datasets.bulk.rank import map_path
from featemb.datasets.bulk.storage import get_batch, get_list
from featemb.datasets.bulk.writing import ArrayFile
from featemb.datasets.recipe import PARTS
from featemb.datasets.splitting import Parts

_PIECE = 1 << 16  # rows of a shard that a digest reads at once


@dataclass(frozen=True)
class Stretch:
    """Some blocks in a row.

    Attributes:
        number: of the stretch, and of its shards.
        names: the blocks.
        words: key -> place of each block's words in the column's map, and their number.
        part: int8, the split of each block's rows.
    """

    number: int
    names: Sequence[str]
    words: Mapping[str, Sequence[tuple[int, int]]]
    part: Sequence[Parts]


@dataclass(frozen=True)
class Meaning:
    """What codes and numbers become.

    Attributes:
        kinds: key -> type of the ids in the column's map.
        ids: type of the shards' ids.
        moments: mean and deviation of each numeric column.
    """

    kinds: Mapping[str, str]
    ids: str
    moments: Sequence[tuple[float, float]]


def fill(work: Work, stretch: Stretch, meaning: Meaning) -> dict[str, Any]:
    """Write the shards of a stretch; return them by split."""
    found: dict[str, Any] = {}
    folder = work.result / "shards"
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, dict[str, ArrayFile]] = {}
        for place, part in enumerate(PARTS):
            rows = sum(int((one == place).sum()) for one in stretch.part)
            if rows:
                name = f"{part}-{stretch.number:05}"
                found[part] = {"name": name, "rows": rows, "ones": 0}
                files[part] = {
                    kind: stack.enter_context(ArrayFile(folder / f"{name}.{kind}.npy", *form))
                    for kind, form in _forms(work, rows, meaning).items()
                }
        for place in range(len(stretch.names)):
            arrays = _encoded(work, stretch, place, meaning)
            for part, shard in found.items():
                chosen = np.flatnonzero(stretch.part[place] == PARTS.index(part))
                shard["ones"] += int(arrays["label"][chosen].sum())
                for kind, file in files[part].items():
                    file.write(arrays[kind][chosen])
    for part, shard in found.items():
        shard["files"] = {kind: file.entry for kind, file in files[part].items()}
    return {"shards": found}


def _forms(
    work: Work, rows: int, meaning: Meaning
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of each file of a shard."""
    recipe = work.recipe
    forms: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "ids": (np.dtype(meaning.ids), (rows, len(recipe.categorical))),
        "label": (np.dtype("<f4"), (rows,)),
    }
    if recipe.numeric:
        forms["numeric"] = np.dtype("<f4"), (rows, len(recipe.numeric))
    if recipe.user is not None:
        forms["user"] = np.dtype("<i8"), (rows,)
    return forms


def _encoded(
    work: Work, stretch: Stretch, place: int, meaning: Meaning
) -> dict[str, npt.NDArray[Any]]:
    """Encode all rows of a block."""
    recipe, name = work.recipe, stretch.names[place]
    rows = get_batch(work.rows(name))
    ids = np.empty((rows.num_rows, len(recipe.categorical)), meaning.ids)
    for column in range(len(recipe.categorical)):
        known = _ids_of_words(work, name, str(column), stretch, place, meaning)
        ids[:, column] = known[rows.column(str(column)).to_numpy()]
    arrays: dict[str, npt.NDArray[Any]] = {"ids": ids}
    arrays["label"] = rows.column("label").to_numpy().astype(np.float32)
    if recipe.numeric:
        arrays["numeric"] = np.empty((rows.num_rows, len(recipe.numeric)), np.float32)
        for column, (mean, deviation) in enumerate(meaning.moments):
            scaled = (rows.column(f"n{column}").to_numpy() - mean) / deviation
            arrays["numeric"][:, column] = np.nan_to_num(scaled, copy=False, nan=0.0)
    if recipe.user is not None:
        known = _ids_of_words(work, name, USERS, stretch, place, meaning)
        arrays["user"] = known[rows.column(USERS).to_numpy()].astype(np.int64)
    return arrays


def _ids_of_words(
    work: Work, block: str, key: str, stretch: Stretch, place: int, meaning: Meaning
) -> npt.NDArray[Any]:
    """Ids by code; code 0 is missing: id 0, and -1 as a user."""
    if key != USERS and work.recipe.hashing is not None:
        ids: npt.NDArray[Any] = work.recipe.hashing.ids(get_list(work.words(block), key), int(key))
    else:
        kind = np.dtype(meaning.kinds[key])
        start, count = stretch.words[key][place]
        ids = np.fromfile(map_path(work, key), kind, count, offset=start * kind.itemsize)
    return np.concatenate([np.array([-1 if key == USERS else 0], ids.dtype), ids])


def digest(
    work: Work, part: str, columns: Mapping[str, tuple[str, int, str]], shards: Sequence[str]
) -> dict[str, str]:
    """SHA-256 of a split's columns, as `featemb.datasets.shards` makes it.

    Args:
        work: the encoding.
        part: the split.
        columns: column -> kind of file, place in its rows, type to take.
        shards: names of the split's shards.
    """
    digests = {column: hashlib.sha256() for column in columns}
    for shard in shards:
        folder, arrays = work.result / "shards", {}
        for kind in {kind for kind, _, _ in columns.values()}:
            path = folder / f"{shard}.{kind}.npy"
            arrays[kind] = np.load(path, mmap_mode="r", allow_pickle=False)
        rows = len(next(iter(arrays.values())))
        for start in range(0, rows, _PIECE):
            for column, (kind, place, form) in columns.items():
                piece = arrays[kind][start : start + _PIECE]
                piece = piece if piece.ndim == 1 else piece[:, place]
                digests[column].update(np.ascontiguousarray(piece, form).data)
    return {f"{part} {column}": one.hexdigest() for column, one in digests.items()}
