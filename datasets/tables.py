"""Users' own files as a source: one file, or several that make one table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from featemb.datasets.source import Piece, Source, parquet, text
from featemb.datasets.textfile import TextFile
from featemb.errors import DataError


def table(path: Path) -> Source:
    """Stream a user's own table: Parquet, or CSV with a header line.

    Raises:
        DataError: there is no such file, or its ending is none of .parquet, .csv, .tsv.
    """
    kind = _kind(path)
    if kind == "parquet":
        return parquet(path)
    return text(path, delimiter=_delimiter(kind))


def _kind(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    endings = [suffix.lower() for suffix in path.suffixes]
    if ".parquet" in endings or ".pq" in endings:
        return "parquet"
    if ".csv" in endings or ".tsv" in endings:
        return "tsv" if ".tsv" in endings else "csv"
    raise DataError(f"{path.name}: the ending must be .parquet, .csv or .tsv")


def _delimiter(kind: str) -> str:
    return "\t" if kind == "tsv" else ","


def tables(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Source:
    """Stream one file or several, one after another; text columns have the first file's types.

    Raises:
        DataError: there is no file, one has another kind than the first, or one of another ending.
    """
    paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(one) for one in path]
    if not paths:
        raise DataError("give at least one file, got none")
    if len(paths) == 1:
        return table(paths[0])
    kinds = {one: _kind(one) for one in paths}
    for one, kind in kinds.items():
        if kind != kinds[paths[0]]:
            raise DataError(f"{one.name} is {kind}, {paths[0].name} is {kinds[paths[0]]}")
    if len(kinds) < len(paths):
        raise DataError(f"a file is given twice: {[one.name for one in paths]}")
    if kinds[paths[0]] == "parquet":
        return _joined([parquet(one) for one in paths])
    first = TextFile(paths[0], delimiter=_delimiter(kinds[paths[0]]))
    types = first.kinds()
    files = [replace(first, path=one, types=types) for one in paths]
    return _joined([Source([one.path], one.stream, cut=one.pieces) for one in files])


def _joined(sources: Sequence[Source]) -> Source:
    def stream() -> Iterator[pa.RecordBatch]:
        for source in sources:
            yield from source.batches()

    def cut(size: int) -> list[Piece] | None:
        found: list[Piece] = []
        for source in sources:
            pieces = None if source.cut is None else source.cut(size)
            if pieces is None:
                return None
            found += pieces
        return found

    return Source([file for source in sources for file in source.files], stream, cut=cut)
