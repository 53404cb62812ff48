"""`Source`: a table read as a stream of Arrow record batches, never whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from featemb.errors import DataError, nearest

BATCH_ROWS = 65_536
_BLOCK_BYTES = 1 << 24
_WHOLE_BYTES = 1 << 28
# In a typed file only an empty cell is missing; in one of unknown types these words are, too.
_MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
Transform = Callable[[pa.RecordBatch], pa.RecordBatch]


def unchanged(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch as it is."""
    return batch


@dataclass(frozen=True)
class Source:
    """A stream of record batches from files.

    Attributes:
        files: the files read, for the fingerprint.
        stream: opens the stream anew.
        transform: applied to every batch: derived columns, rows left out.
        notes: facts for the data set's meta.
    """

    files: Sequence[Path]
    stream: Callable[[], Iterable[pa.RecordBatch]]
    transform: Transform = unchanged
    notes: Mapping[str, Any] = field(default_factory=dict)

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

    return Source([path], stream, transform)


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

    def stream() -> Iterator[pa.RecordBatch]:
        reader = csv.open_csv(
            path,
            csv.ReadOptions(
                block_size=_BLOCK_BYTES,
                column_names=list(names) if names else None,
                encoding=encoding,
            ),
            csv.ParseOptions(delimiter=delimiter, quote_char='"' if types is None else False),
            csv.ConvertOptions(
                column_types=dict(types or {}),
                strings_can_be_null=True,
                null_values=list(_MISSING if types is None else _MISSING[:1]),
            ),
        )
        with reader:
            _require_text(reader.schema)
            yield from reader

    return Source([path], stream, transform)


def _require_text(schema: pa.Schema) -> None:
    """Refuse columns that are not text in the file's encoding: Arrow would call them binary."""
    for column in schema:
        if pa.types.is_binary(column.type):
            raise OSError(f"column {column.name!r} is not UTF-8 text")


def table(path: Path) -> Source:
    """Stream a user's own table: Parquet, or CSV with a header line.

    Raises:
        DataError: there is no such file, or its ending is none of .parquet, .csv, .tsv.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    endings = [suffix.lower() for suffix in path.suffixes]
    if ".parquet" in endings or ".pq" in endings:
        return parquet(path)
    if ".csv" in endings or ".tsv" in endings:
        return text(path, delimiter="\t" if ".tsv" in endings else ",")
    raise DataError(f"{path.name}: the ending must be .parquet, .csv or .tsv")


def require_columns(batch: pa.RecordBatch, names: Iterable[str], where: str) -> None:
    """Refuse a batch that lacks columns.

    Raises:
        DataError: names the first missing column and the nearest one that is there.
    """
    for name in names:
        if name not in batch.schema.names:
            raise DataError(f"{where}: no column {name!r}; {nearest(name, batch.schema.names)}")
