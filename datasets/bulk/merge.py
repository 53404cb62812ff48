"""The words of all blocks become vocabularies: an external merge of sorted runs.

A block's words are sorted: they are a run. A range of values is a slice of each run; the slices of
one range are merged in memory, range after range, so that no vocabulary need fit. Ranks then come
from a histogram of counts: most frequent first, ties by value.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.bulk.blocks import USERS, Work
from featemb.datasets.bulk.storage import get_list, put_array, put_lists
from featemb.errors import DataError

Integers = npt.NDArray[np.int64]
_SAMPLES = 200  # words looked at for each bound between ranges


@dataclass(frozen=True)
class Runs:
    """The runs of one column.

    Attributes:
        key: of the column.
        names: the blocks.
        words: number of words of each.
        skips: numbers in each block's file of counts before those of this column's words.
        starts: first row of each block in the source.
        limit: most words that are merged at once.
        low: words from here on, or None: from the first.
        high: words below this, or None: to the last.
    """

    key: str
    names: Sequence[str]
    words: Sequence[int]
    skips: Sequence[int]
    starts: Sequence[int]
    limit: int
    low: Any = None
    high: Any = None

    def slices(self, work: Work) -> Iterator[tuple[int, pa.Array, int, int]]:
        """Yield of each block its number, words, and the slice of them in the range."""
        for number, name in enumerate(self.names):
            words = get_list(work.words(name), self.key)
            first = 0 if self.low is None else _bisect(words, self.low)
            last = len(words) if self.high is None else _bisect(words, self.high)
            yield number, words, first, last


def _bisect(words: pa.Array, value: Any) -> int:
    return bisect_left(words, value, key=lambda word: word.as_py())


def ranges_folder(work: Work, key: str) -> Path:
    """Where a column's merged ranges lie."""
    return work.folder / "ranges" / key


def bounds(work: Work, runs: Runs) -> dict[str, Any]:
    """Return values that part a column's words into ranges of about ``runs.limit`` words."""
    ranges = -(-sum(runs.words) // runs.limit)
    if ranges <= 1:
        return {"bounds": []}
    stride = max(1, sum(runs.words) // (ranges * _SAMPLES))
    sampled, skipped = [], 0
    for _, words, _, last in runs.slices(work):
        sampled.append(words.take(pa.array(np.arange(skipped, last, stride))))
        skipped = (skipped - last) % stride
    sample = pc.array_take(whole := pa.concat_arrays(sampled), pc.sort_indices(whole))
    places = np.arange(1, ranges) * len(sample) // ranges
    return {"bounds": sorted(set(sample.take(pa.array(places)).to_pylist()))}


def merge(work: Work, number: int, runs: Runs, min_count: int) -> dict[str, Any]:
    """Merge one range of a column's words; those seen often enough stay, sorted by value.

    Four files are written: the values, their weights (counts; of users the first row), for every
    word of every run the place of its value (-1: too rare), and the runs' bounds in that.
    """
    pieces, weights, ends = [], [], [0]
    for block, words, first, last in runs.slices(work):
        pieces.append(words.slice(first, last - first))
        weights.append(_weights(work, runs, block, first, last))
        ends.append(ends[-1] + last - first)
    try:
        coded = pc.dictionary_encode(pa.concat_arrays(pieces))
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        raise DataError(f"column {work.keys[runs.key]!r} changes its type: {error}") from error
    places = coded.indices.to_numpy()
    weight = np.concatenate(weights)
    if runs.key == USERS:  # blocks come in order: a value's first word is the earliest
        total = np.empty(len(coded.dictionary), np.int64)
        total[places[::-1]] = weight[::-1]
        kept = np.arange(len(total))
    else:
        total = np.bincount(places, weight, len(coded.dictionary)).astype(np.int64)
        kept = np.flatnonzero(total >= min_count)
    values = coded.dictionary.take(pa.array(kept))
    order = pc.sort_indices(values).to_numpy()
    place = np.full(len(total), -1, np.int32)
    place[kept[order]] = np.arange(len(kept))
    folder = ranges_folder(work, runs.key)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.{kind}" for kind in ("values", "weights", "places", "ends")]
    seals = [
        put_lists(paths[0], {"value": values.take(pa.array(order))}),
        put_array(paths[1], total[kept[order]]),
        put_array(paths[2], place[places]),
        put_array(paths[3], np.array(ends, np.int64)),
    ]
    return {"kept": len(kept), "files": work.seals(dict(zip(paths, seals, strict=True)))}


def _weights(work: Work, runs: Runs, block: int, first: int, last: int) -> Integers:
    name = runs.names[block]
    if runs.key == USERS:
        rows = get_list(work.words(name), "first").slice(first, last - first)
        found: Integers = rows.to_numpy().astype(np.int64) + runs.starts[block]
        return found
    path, width = work.counts(name), 4
    skip = runs.skips[block] + first
    return np.fromfile(path, np.int32, last - first, offset=skip * width).astype(np.int64)
