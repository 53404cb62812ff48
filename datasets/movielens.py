"""MovieLens-20M and -25M as CTR tasks, from the original CSV files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from featemb.datasets.ml1m import TERMS
from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import Source
from featemb.errors import DataError

_SUMMARY = "a user's rating of a movie; label: 4 stars or more against 2.5 or less"


def _prepare(
    folder: str, root: str | os.PathLike[str] | None, min_count: int, seed: int
) -> tuple[Source, Recipe]:
    path = locate(root, folder, f"{folder}.zip")
    files = [path] if path.suffix == ".zip" else [path / "ratings.csv", path / "movies.csv"]
    recipe = Recipe(
        label="label",
        columns=[
            Column(name="userId"),
            Column(name="movieId"),
            Column(name="genres", multi=True, separator="|", pooling="mean"),
        ],
        min_count=min_count,
        split=SplitRule(seed=seed),
        user="userId",
    )
    return Source(files, lambda: _stream(path, folder), _label), recipe


def _label(batch: pa.RecordBatch) -> pa.RecordBatch:
    rating = batch.column("rating")
    batch = batch.filter(pc.or_(pc.greater_equal(rating, 4.0), pc.less_equal(rating, 2.5)))
    return batch.append_column(
        "label", pc.greater_equal(batch.column("rating"), 4.0).cast(pa.int8())
    )


def _stream(path: Path, folder: str) -> Iterator[pa.RecordBatch]:
    with _open(path, folder, "movies.csv") as file:
        movies = csv.read_csv(file)
    with _open(path, folder, "ratings.csv") as file, csv.open_csv(file) as reader:
        for batch in reader:
            rows = pc.index_in(
                batch.column("movieId"), value_set=movies.column("movieId").combine_chunks()
            )
            genres = movies.column("genres").combine_chunks().take(rows)
            yield batch.append_column("genres", genres)


def _open(path: Path, folder: str, name: str) -> IO[bytes]:
    try:
        if path.suffix == ".zip":
            return zipfile.ZipFile(path).open(f"{folder}/{name}")
        return (path / name).open("rb")
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name}: cannot read {name}: {error}") from error


def _register(name: str, folder: str) -> Callable[..., tuple[Source, Recipe]]:
    @protocol(name, _SUMMARY, TERMS)
    def prepare(
        root: str | os.PathLike[str] | None = None, min_count: int = 2, seed: int = 0
    ) -> tuple[Source, Recipe]:
        """Ratings of 3 and 3.5 are dropped; random 8:1:1 by ``seed``; gAUC groups by user.

        Fields: user, movie, and the movie's genres as a bag with mean pooling.
        """
        return _prepare(folder, root, min_count, seed)

    made: Callable[..., tuple[Source, Recipe]] = prepare
    return made


prepare_20m = _register("movielens20m", "ml-20m")
prepare_25m = _register("movielens25m", "ml-25m")
