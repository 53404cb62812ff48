"""MovieLens-1M as a CTR task, from the original files or a prepared Parquet file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import BATCH_ROWS, Source, parquet
from featemb.errors import DataError

TERMS = "GroupLens MovieLens licence: research use with acknowledgement, no redistribution"
FIELDS = ("user_id", "movie_id", "gender", "age", "occupation", "zip")


def _recipe(genres: bool, min_count: int, seed: int) -> Recipe:
    columns = [Column(name=name) for name in FIELDS]
    if genres:
        columns.append(Column(name="genres", multi=True, separator="|", pooling="mean"))
    split = SplitRule(seed=seed)
    return Recipe(label="label", columns=columns, min_count=min_count, split=split, user="user_id")


def _label(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Drop the ratings of 3; 4 and 5 are positive."""
    batch = batch.filter(pc.not_equal(batch.column("rating"), 3))
    label = pc.greater_equal(batch.column("rating"), 4).cast(pa.int8())
    return batch.append_column("label", label)


@protocol("ml1m", "a user's rating of a movie; label: 4 or 5 stars against 1 or 2", TERMS)
def prepare(
    root: str | os.PathLike[str] | None = None,
    genres: bool = False,
    min_count: int = 1,
    seed: int = 0,
) -> tuple[Source, Recipe]:
    """Ratings of 3 are dropped (739,012 rows stay), 4-5 are 1, 1-2 are 0; random 8:1:1 by ``seed``.

    Fields: user, movie, gender, age, occupation, zip; with ``genres``, also the movie's genres as
    a bag with mean pooling. gAUC groups by user. The folder ``ml-1m``, ``ml-1m.zip`` and the
    prepared ``ml1m.parquet`` (same rows in the same order) give the same splits.
    """
    path = locate(root, "ml1m.parquet", "ml-1m", "ml-1m.zip")
    recipe = _recipe(genres, min_count, seed)
    if path.suffix == ".parquet":
        wanted = [*FIELDS, "rating", *(["genres"] if genres else [])]
        return parquet(path, _label, wanted), recipe
    return Source(_files(path), lambda: _stream(path), _label), recipe


@protocol("ml1m_genres", "ml1m, and the genres of the movie as a multi-valued field", TERMS)
def prepare_genres(
    root: str | os.PathLike[str] | None = None, min_count: int = 1, seed: int = 0
) -> tuple[Source, Recipe]:
    """As ``ml1m``, with the movie's genres as a seventh field: a bag with mean pooling."""
    source, recipe = prepare(root, genres=True, min_count=min_count, seed=seed)
    return source, recipe


def _files(path: Path) -> list[Path]:
    if path.suffix == ".zip":
        return [path]
    return [path / f"{name}.dat" for name in ("ratings", "users", "movies")]


def _stream(path: Path) -> Iterator[pa.RecordBatch]:
    """Join users and movies to every rating."""
    users = _table(path, "users", ["user_id", "gender", "age", "occupation", "zip"])
    movies = _table(path, "movies", ["movie_id", "title", "genres"])
    ratings = _table(path, "ratings", ["user_id", "movie_id", "rating", "timestamp"])
    ratings = _with(ratings, users, "user_id")
    ratings = _with(ratings, movies, "movie_id")
    yield from ratings.to_batches(BATCH_ROWS)


def _with(left: pa.Table, right: pa.Table, key: str) -> pa.Table:
    """Add the columns of ``right`` by a key, keeping the order of the rows."""
    rows = pc.index_in(left.column(key), value_set=right.column(key).combine_chunks())
    for name in right.column_names:
        if name != key:
            left = left.append_column(name, right.column(name).take(rows))
    return left


def _table(path: Path, name: str, columns: list[str]) -> pa.Table:
    """Read one ``::``-separated Latin-1 file of MovieLens-1M."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                raw = archive.read(f"ml-1m/{name}.dat")
        else:
            raw = (path / f"{name}.dat").read_bytes()
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name}: cannot read {name}.dat: {error}") from error
    types: dict[str, Any] = dict.fromkeys(
        ("user_id", "movie_id", "rating", "age", "occupation", "timestamp"), pa.int64()
    )
    types |= dict.fromkeys(("gender", "zip", "title", "genres"), pa.string())
    return csv.read_csv(
        io.BytesIO(raw.replace(b"::", b"\x01")),
        csv.ReadOptions(column_names=columns, encoding="latin1"),
        csv.ParseOptions(delimiter="\x01", quote_char=False),
        csv.ConvertOptions(column_types={k: types[k] for k in columns}),
    )
