"""`Source`: a table read as a stream of Arrow record batches, never whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from featemb.datasets.textfile import TextFile
from featemb.errors import DataError, nearest

BATCH_ROWS = 65_536
_WHOLE_BYTES = 1 << 28
Transform = Callable[[pa.RecordBatch], pa.RecordBatch]


def unchanged(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch as it is."""
    return batch


class Piece(Protocol):
    """A stretch of a source's rows."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows.

        Raises:
            DataError: they cannot be read; the message names the file and the place.
        """

    def rows_before(self) -> int:
        """Number of the file's rows before the piece, for messages."""

    def where(self) -> str:
        """Name the file and the place in it, for messages."""


@dataclass(frozen=True)
class RowsPiece:
    """Rows that are in memory already.

    Attributes:
        rows: the rows.
        start: number of rows before them.
    """

    rows: pa.Table
    start: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, as one batch."""
        yield from self.rows.combine_chunks().to_batches()

    def rows_before(self) -> int:
        """Return the number of rows before the piece."""
        return self.start

    def where(self) -> str:
        """Name the rows."""
        return f"rows {self.start} to {self.start + self.rows.num_rows - 1}"


@dataclass(frozen=True)
class GroupPiece:
    """A row group of a Parquet file.

    Attributes:
        path: the file.
        group: number of the row group.
        columns: columns read, or None for all.
        wanted: of these, only those that are wanted, or None for all.
    """

    path: Path
    group: int
    columns: Sequence[str] | None
    wanted: Collection[str] | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows.

        Raises:
            DataError: the row group is corrupt.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                columns = list(self.columns or file.schema_arrow.names)
                if self.wanted is not None:
                    columns = [name for name in columns if name in self.wanted] or columns
                yield from file.iter_batches(BATCH_ROWS, [self.group], columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {self.where()}: {error}") from error

    def rows_before(self) -> int:
        """Count the rows before the piece."""
        with pq.ParquetFile(self.path) as file:
            return sum(file.metadata.row_group(n).num_rows for n in range(self.group))

    def where(self) -> str:
        """Name the file and the row group."""
        return f"{self.path.name}, row group {self.group}"


@dataclass(frozen=True)
class Source:
    """A stream of record batches from files.

    Attributes:
        files: the files read, for the fingerprint.
        stream: opens the stream anew.
        transform: applied to every batch: derived columns, rows left out.
        notes: facts for the data set's meta.
        cut: cuts the files into pieces of about so many bytes, for `pieces`; its answer None, or
            no such function, means that they can only be read as a stream.
    """

    files: Sequence[Path]
    stream: Callable[[], Iterable[pa.RecordBatch]]
    transform: Transform = unchanged
    notes: Mapping[str, Any] = field(default_factory=dict)
    cut: Callable[[int], Sequence[Piece] | None] | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches, transformed.

        Raises:
            DataError: a file cannot be read or decoded.
        """
        try:
            for batch in self.stream():
                changed = self.transform(batch)
                if changed.num_rows:
                    yield changed
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            names = ", ".join(path.name for path in self.files)
            raise DataError(f"cannot read {names}: {error}") from error

    def pieces(self, size: int, columns: Collection[str] | None = None) -> Iterator[Piece]:
        """Yield pieces of about ``size`` bytes, which processes can read apart, in the rows' order.

        A source that cannot be cut is read here, and each piece holds its rows. The transform is
        not applied; where there is one, it decides what columns it needs, else pieces of Parquet
        files read only those of ``columns`` that are there.

        Raises:
            DataError: a file cannot be read or decoded.
        """
        try:
            found = None if self.cut is None else self.cut(size)
            if found is not None:
                for piece in found:
                    whole = columns is None or self.transform is not unchanged
                    narrow = isinstance(piece, GroupPiece) and not whole
                    yield replace(piece, wanted=columns) if narrow else piece  # type: ignore[type-var]
                return
            held, start = [], 0
            for batch in self.stream():
                held.append(batch)
                if sum(one.nbytes for one in held) >= size:
                    yield RowsPiece(pa.Table.from_batches(held), start)
                    start, held = start + sum(one.num_rows for one in held), []
            if held:
                yield RowsPiece(pa.Table.from_batches(held), start)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            names = ", ".join(path.name for path in self.files)
            raise DataError(f"cannot read {names}: {error}") from error

    def fingerprint(self) -> str:
        """SHA-256 over the files' names and contents.

        Of a file above 256 MiB: its size, time of change, and first and last MiB, so that a large
        file is not read once more at every load.

        Raises:
            DataError: a file cannot be read.
        """
        digest = hashlib.sha256()
        try:
            for path in self.files:
                _digest_file(path, digest)
        except OSError as error:
            raise DataError(f"cannot read {path.name}: {error}") from error
        return digest.hexdigest()


def _digest_file(path: Path, digest: hashlib._Hash) -> None:
    state = path.stat()
    digest.update(f"{path.name} {state.st_size} ".encode())
    with path.open("rb") as file:
        if state.st_size <= _WHOLE_BYTES:
            while block := file.read(1 << 20):
                digest.update(block)
            return
        digest.update(f"{state.st_mtime_ns} ".encode())
        digest.update(file.read(1 << 20))
        file.seek(-(1 << 20), os.SEEK_END)
        digest.update(file.read(1 << 20))


def parquet(
    path: Path, transform: Transform = unchanged, columns: list[str] | None = None
) -> Source:
    """Stream a Parquet file."""

    def stream() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns)

    def cut(size: int) -> list[GroupPiece]:
        with pq.ParquetFile(path) as file:
            return [GroupPiece(path, n, columns) for n in range(file.num_row_groups)]

    return Source([path], stream, transform, cut=cut)


def text(
    path: Path,
    names: Sequence[str] | None = None,
    types: Mapping[str, pa.DataType] | None = None,
    delimiter: str = ",",
    encoding: str = "utf8",
    transform: Transform = unchanged,
) -> Source:
    """Stream a CSV or TSV file.

    Args:
        path: the file, plain or compressed as its name says.
        names: column names of a file without a header line; None reads the header.
        types: types of columns; only empty cells are missing then, and quotes have no meaning.
            None infers types from the first block; NA, NaN, null and None are missing, too.
        delimiter: one character between cells.
        encoding: of the file.
        transform: applied to every batch.
    """
    file = TextFile(path, names, types or {}, delimiter, encoding, typed=types is not None)
    return Source([path], file.stream, transform, cut=file.pieces)


def require_columns(batch: pa.RecordBatch, names: Iterable[str], where: str) -> None:
    """Refuse a batch that lacks columns.

    Raises:
        DataError: names the first missing column and the nearest one that is there.
    """
    for name in names:
        if name not in batch.schema.names:
            raise DataError(f"{where}: no column {name!r}; {nearest(name, batch.schema.names)}")
