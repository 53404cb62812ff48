"""Ids of merged words: ranks by count, the map from each block's words to them, the vocabulary.

One range of a column is in memory at a time; of users, 24 bytes a user.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.bulk.blocks import USERS, Work
from featemb.datasets.bulk.merge import Integers, Runs, ranges_folder
from featemb.datasets.bulk.storage import get_list, seal, write_error
from featemb.datasets.bulk.writing import ArrayFile, entry_of

CHUNK = 1 << 20  # values of a vocabulary written at once


def map_path(work: Work, key: str) -> Path:
    """The file of the ids of all words of all blocks."""
    return work.folder / "maps" / f"{key}.ids"


def map_type(cardinality: int) -> np.dtype[Any]:
    """int32 where the ids fit, else int64."""
    return np.dtype("<i4" if cardinality <= 1 << 31 else "<i8")


def rank(work: Work, runs: Runs, ranges: int, cells: int) -> dict[str, Any]:
    """Rank a column's values, write its map and its vocabulary; return cardinality and entries.

    Args:
        work: the encoding.
        runs: the column's runs.
        ranges: number of merged ranges.
        cells: training cells of the column, for the count of id 0.
    """
    folder = ranges_folder(work, runs.key)
    _rank_users(folder, ranges) if runs.key == USERS else _rank_values(folder, ranges)
    kept = sum((folder / f"{n}.weights").stat().st_size // 8 for n in range(ranges))
    path = map_path(work, runs.key)
    path.parent.mkdir(exist_ok=True)
    _write_map(path, runs, folder, ranges, map_type(kept + 1))
    size_and_crc = seal(path)
    assert size_and_crc is not None
    found: dict[str, Any] = {"cardinality": kept + 1, "files": work.seals({path: size_and_crc})}
    if runs.key != USERS:
        found["vocabulary"] = _write_vocabulary(work, runs.key, ranges, kept, cells)
    return found


def _weights(folder: Path, number: int) -> Integers:
    return np.fromfile(folder / f"{number}.weights", np.int64)


def _rank_users(folder: Path, ranges: int) -> None:
    """Users are numbered from 0 in the order they come: by the row that they come in first."""
    weights = [_weights(folder, number) for number in range(ranges)]
    whole = np.concatenate(weights)
    ids = np.empty(len(whole), np.int64)
    ids[np.argsort(whole)] = np.arange(len(whole))
    ends = np.cumsum([0, *map(len, weights)])
    for number in range(ranges):
        np.save(folder / f"{number}.ids.npy", ids[ends[number] : ends[number + 1]])


def _rank_values(folder: Path, ranges: int) -> None:
    """Ids from 1: most frequent first, ties in the order of values, which is the ranges' order."""
    histogram: Counter[int] = Counter()
    for number in range(ranges):
        levels, sizes = np.unique(_weights(folder, number), return_counts=True)
        histogram.update(dict(zip(levels.tolist(), sizes.tolist(), strict=True)))
    levels = np.array(sorted(histogram, reverse=True), np.int64)
    sizes = np.array([histogram[int(level)] for level in levels], np.int64)
    free = 1 + np.cumsum(sizes) - sizes  # the next free id of each count
    for number in range(ranges):
        counts = _weights(folder, number)
        level = np.searchsorted(-levels, -counts)
        order = np.argsort(level, kind="stable")
        here = np.bincount(level, minlength=len(levels))
        before = np.repeat(np.cumsum(here) - here, here)
        sorted_ids = free[level[order]] + np.arange(len(counts)) - before
        ids = np.empty(len(counts), np.int64)
        ids[order] = sorted_ids
        free += here
        np.save(folder / f"{number}.ids.npy", ids)
        np.save(folder / f"{number}.order.npy", order)
        np.save(folder / f"{number}.sorted.npy", sorted_ids)


def _write_map(path: Path, runs: Runs, folder: Path, ranges: int, kind: np.dtype[Any]) -> None:
    """Write the id of each word of each block, block after block; 0 for rare words."""
    places = np.concatenate([[0], np.cumsum(runs.words)])[:-1]
    try:
        with path.open("wb") as file:
            file.truncate(sum(runs.words) * kind.itemsize)
            for number in range(ranges):
                ids = np.load(folder / f"{number}.ids.npy")
                known = np.concatenate([ids, [0]]).astype(kind)  # place -1 is the last one: 0
                found = known[np.fromfile(folder / f"{number}.places", np.int32)]
                ends = np.fromfile(folder / f"{number}.ends", np.int64)
                for block in np.flatnonzero(np.diff(ends)):
                    file.seek(int(places[block]) * kind.itemsize)
                    file.write(found[ends[block] : ends[block + 1]].data)
                places += np.diff(ends)
    except OSError as error:
        raise write_error(path, error) from error


def _write_vocabulary(work: Work, key: str, ranges: int, kept: int, cells: int) -> dict[str, Any]:
    """Write values and counts in the order of ids."""
    folder = work.result / "vocabulary"
    folder.mkdir(exist_ok=True)
    path, counts_path = folder / f"{int(key):03}.arrow", folder / f"{int(key):03}.counts.npy"
    parts = [_Sorted(ranges_folder(work, key), number) for number in range(ranges)]
    unknown = cells - sum(part.total for part in parts)
    schema = pa.schema({"value": parts[0].values.type})
    try:
        with (
            ArrayFile(counts_path, np.dtype("<i8"), (kept + 1,)) as counts,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            counts.write(np.array([unknown], np.int64))
            for start in range(1, kept + 1, CHUNK):
                values, weights = _chunk(parts, start)
                writer.write_batch(pa.RecordBatch.from_arrays([values], schema=schema))
                counts.write(weights)
    except OSError as error:
        raise write_error(path, error) from error
    return {"values": entry_of(path), "counts": counts.entry}


class _Sorted:
    """A range's values in the order of their ids, on disk."""

    def __init__(self, folder: Path, number: int) -> None:
        self.values = get_list(folder / f"{number}.values", "value")
        self.order, self.ids = (
            np.load(folder / f"{number}.{kind}.npy", mmap_mode="r") for kind in ("order", "sorted")
        )
        self._weights = folder, number
        self.total = int(_weights(folder, number).sum())

    def take(self, start: int, stop: int) -> tuple[pa.Array, Integers, npt.NDArray[np.int64]]:
        """Values, ids and counts of ``start <= id < stop``."""
        first, last = np.searchsorted(self.ids, [start, stop])
        order = np.asarray(self.order[first:last])
        counts = np.memmap(self._weights[0] / f"{self._weights[1]}.weights", np.int64, "r")
        return self.values.take(pa.array(order)), self.ids[first:last], counts[order]


def _chunk(parts: list[_Sorted], start: int) -> tuple[pa.Array, Integers]:
    found = [part.take(start, start + CHUNK) for part in parts if len(part.ids)]
    values, ids, counts = zip(*found, strict=True)
    order = np.argsort(np.concatenate(ids))
    return pc.array_take(pa.concat_arrays(values), pa.array(order)), np.concatenate(counts)[order]
