"""The order of an encoding's steps, from a source to a folder of shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featemb import __version__
from featemb.datasets.bulk.blocks import USERS, Work, count, parse, split_column
from featemb.datasets.bulk.fill import Meaning, Stretch, fill
from featemb.datasets.bulk.finish import digest_tasks, fingerprint, schema_of, write_index
from featemb.datasets.bulk.limits import DEFAULT, PIECE_BYTES, Limits, limits
from featemb.datasets.bulk.lock import locked
from featemb.datasets.bulk.merge import Runs, bounds, merge
from featemb.datasets.bulk.rank import map_type, rank
from featemb.datasets.bulk.runner import Result, Runner, Task
from featemb.datasets.bulk.storage import write_error
from featemb.datasets.encode import GROUP
from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.shard_index import FORMAT, Index, is_sharded, read_index
from featemb.datasets.source import BATCH_ROWS, Source
from featemb.datasets.splitting import Parts, assign
from featemb.datasets.vocabulary import Moments
from featemb.errors import DataError

STRETCH_ROWS = 1 << 19  # source rows of a shard
Report = Callable[[str, int, int | None], None]


def encode_shards(
    source: Source,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    workers: int | None = None,
    memory: int = DEFAULT,
    meta: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Index:
    """Encode a source into a folder of shards.

    The folder appears whole. Until then what is done is kept beside it, in ``<out>.partial``, and
    the same call goes on from there. A folder that holds the same already is left alone.

    Args:
        source: the rows.
        recipe: what to do with them; single-valued columns only.
        out: the folder.
        workers: number of processes; None is the number of processors. Fewer where the memory does
            not suffice.
        memory: bytes that all processes together may hold (resident), at least 1 GiB. Beyond
            45 million rows, a random split takes 10 bytes a row more, one by time 25.
        meta: facts to keep.
        report: told the step, tasks done, and tasks in all, where known.

    Raises:
        DataError: the source does not fit the recipe, a row is malformed, the disk is full, or
            ``out`` holds something else.
    """
    folder = Path(out)
    _refuse(recipe)
    allowed = limits(workers, memory)
    key = hashlib.sha256(f"{FORMAT} {recipe.to_json()} {source.fingerprint()}".encode()).hexdigest()
    partial = folder.with_name(f"{folder.name}.partial")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not is_sharded(folder) or (found := read_index(folder)).document["key"] != key:
            raise DataError(f"{os.fspath(folder)!r} holds something else: remove it first")
        return found
    state = f"{key} {__version__} {PIECE_BYTES} {BATCH_ROWS} {STRETCH_ROWS}"
    with _partial(partial, state) as place, Runner(place, allowed.workers) as runner:
        work = Work(recipe, source.transform, place)
        job = _Job(work, runner, allowed, report or _silent)
        job.encode(source)
        document = job.document() | {"key": key, "meta": dict(meta or {})}
        write_index(work.result, document)
        try:
            os.replace(work.result, folder)
        except OSError as error:
            raise write_error(folder, error) from error
    shutil.rmtree(partial, ignore_errors=True)
    return read_index(folder)


def _silent(step: str, done: int, total: int | None) -> None:
    """Report nothing."""


def _refuse(recipe: Recipe) -> None:
    several = [column.name for column in recipe.categorical if column.multi]
    if several:
        raise DataError(
            f"columns {several} are multi-valued: shards hold one value a cell; "
            "featemb.datasets.load encodes such data in memory"
        )
    if GROUP in [column.name for column in recipe.columns]:
        raise DataError(f"no column may be named {GROUP!r}")


@contextmanager
def _partial(partial: Path, key: str) -> Iterator[Path]:
    """Yield the folder of an encoding under way, whose files belong to it, and to us alone."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial):
            job = partial / "job.json"
            if not job.is_file() or json.loads(job.read_text("utf-8")).get("key") != key:
                for path in partial.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                job.write_text(json.dumps({"key": key}), "utf-8")
            for name in ("blocks", "result/shards", "result/vocabulary"):
                (partial / name).mkdir(parents=True, exist_ok=True)
            yield partial
    except OSError as error:
        raise write_error(partial, error) from error


class _Job:
    """An encoding under way: the results of its steps."""

    def __init__(self, work: Work, runner: Runner, allowed: Limits, report: Report) -> None:
        self.work = work
        self.recipe = work.recipe
        self._runner = runner
        self._allowed = allowed
        self._report = report

    def encode(self, source: Source) -> None:
        """Run all steps."""
        self._parse(source)
        parts = self._split(source)
        self._count(parts)
        self._merge()
        self._fill()

    def _run(self, step: str, tasks: list[Task]) -> list[Result]:
        found = []
        for result in self._runner.run(tasks):
            found.append(result)
            self._report(step, len(found), len(tasks))
        return found

    def _parse(self, source: Source) -> None:
        tasks = (
            Task(f"parse-{number:06}", parse, (self.work, number, piece))
            for number, piece in enumerate(source.pieces(PIECE_BYTES, self.recipe.needed))
        )
        self.blocks: list[Result] = []
        for done, result in enumerate(self._runner.run(tasks), start=1):
            self.blocks += result["blocks"]
            self._report("parse", done, None)
        self.rows = sum(block["rows"] for block in self.blocks)
        self._starts = np.concatenate([[0], np.cumsum([b["rows"] for b in self.blocks])])

    def _split(self, source: Source) -> Parts:
        """Decide the split by what the blocks keep of its column."""
        column = self.recipe.split.column

        def stream() -> Iterator[pa.RecordBatch]:
            for block in self.blocks:
                yield split_column(self.work, block["name"], column or "")

        return assign(Source(source.files, stream), self.recipe)

    def _count(self, parts: Parts) -> None:
        self._parts = np.split(parts, self._starts[1:-1])
        tasks = [
            Task(f"count-{b['name']}", count, (self.work, b["name"], b["words"], part))
            for b, part in zip(self.blocks, self._parts, strict=True)
        ]
        counted = self._run("count", tasks)
        labels = np.sum([one["labels"] for one in counted], axis=0)
        for number, name in enumerate(PARTS):
            if not labels[number].all():
                raise DataError(
                    f"the {name} split has {labels[number, 0]} rows of label 0 and "
                    f"{labels[number, 1]} of label 1; both are needed"
                )
        self.moments = {}
        for place, column in enumerate(self.recipe.numeric):
            moments = Moments()
            for one in counted:
                moments.merge(Moments(*one["moments"][place]))
            self.moments[column.name] = moments.close()
        self._train = int(labels[0].sum())

    def _runs(self) -> dict[str, Runs]:
        """The runs of all columns that get a vocabulary, and of users."""
        found = {}
        for place, key in enumerate(self.work.keys):
            if key != USERS and self.recipe.hashing is not None:
                continue
            words = [block["words"][place] for block in self.blocks]
            size = sum(block["bytes"][place] for block in self.blocks)
            skips = [sum(block["words"][:place]) + place + 1 for block in self.blocks]
            limit = self._allowed.words(sum(words), size)
            names = [block["name"] for block in self.blocks]
            found[key] = Runs(key, names, words, skips, self._starts[:-1].tolist(), limit)
        return found

    def _merge(self) -> None:
        runs = self._runs()
        tasks = [
            Task(f"bounds-{key}-{one.limit}", bounds, (self.work, one)) for key, one in runs.items()
        ]
        found = self._run("plan", tasks)
        ranges: dict[str, list[Runs]] = {}
        for one, result in zip(runs.values(), found, strict=True):
            inner = result["bounds"]
            edges = zip([None, *inner], [*inner, None], strict=True)
            ranges[one.key] = [replace(one, low=low, high=high) for low, high in edges]
        tasks = [
            Task(
                f"merge-{key}-{number}-of-{len(several)}",
                merge,
                (self.work, number, one, self._threshold(key)),
            )
            for key, several in ranges.items()
            for number, one in enumerate(several)
        ]
        self._run("merge", tasks)
        tasks = [
            Task(f"rank-{key}", rank, (self.work, one, len(ranges[key]), self._train))
            for key, one in runs.items()
        ]
        self.ranked = dict(zip(runs, self._run("rank", tasks), strict=True))
        self._words = {key: one.words for key, one in runs.items()}

    def _threshold(self, key: str) -> int:
        return 1 if key == USERS else self.recipe.threshold(self.recipe.categorical[int(key)])

    def _fill(self) -> None:
        kinds = {key: map_type(one["cardinality"]).str for key, one in self.ranked.items()}
        widest = max((kinds[key] for key in kinds if key != USERS), default="<i4")
        if self.recipe.hashing is not None:
            widest = map_type(self.recipe.hashing.size or 1 << 63).str
        self.ids = widest
        moments = tuple(self.moments[column.name] for column in self.recipe.numeric)
        meaning = Meaning(kinds, widest, moments)
        tasks = [
            Task(f"fill-{one.number:05}", fill, (self.work, one, meaning))
            for one in self._stretches()
        ]
        filled = self._run("fill", tasks)
        self.splits: dict[str, list[Result]] = {
            part: [one["shards"][part] for one in filled if part in one["shards"]] for part in PARTS
        }

    def _stretches(self) -> Iterator[Stretch]:
        ends = {key: np.cumsum([0, *words]).tolist() for key, words in self._words.items()}
        first, number = 0, 0
        for last in range(1, len(self.blocks) + 1):
            rows = self._starts[last] - self._starts[first]
            if rows < STRETCH_ROWS and last < len(self.blocks):
                continue
            chosen = range(first, last)
            words = {
                key: [(ends[key][n], self._words[key][n]) for n in chosen] for key in self._words
            }
            names = [self.blocks[n]["name"] for n in chosen]
            yield Stretch(number, names, words, [self._parts[n] for n in chosen])
            first, number = last, number + 1

    def document(self) -> dict[str, Any]:
        """Return what the index says of the encoded data."""
        tasks = list(digest_tasks(self.work, self.ids, self.splits))
        digests: dict[str, str] = {}
        for result in self._run("check", tasks):
            digests |= result
        ranked = [one for key, one in self.ranked.items() if key != USERS]
        schema = schema_of(self.recipe, [one["cardinality"] for one in ranked])
        vocabularies = [one["vocabulary"] for one in ranked]
        return {
            "schema": json.loads(schema.to_json()),
            "recipe": json.loads(self.recipe.to_json()),
            "moments": self.moments,
            "fingerprint": fingerprint(schema, digests),
            "splits": self.splits,
            "vocabulary": dict(zip(schema.names, vocabularies, strict=False)),
            "kinds": dict(zip(schema.names, self.blocks[0]["kinds"], strict=False)),
        }
