"""A CSV or TSV file as a stream of record batches, and as pieces that processes read apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv

from featemb.errors import DataError

_BLOCK_BYTES = 1 << 24
# In a typed file only an empty cell is missing; in one of unknown types these words are, too.
_MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
_PACKED = (".gz", ".bz2", ".zst", ".lz4", ".br")  # what Arrow unpacks by the name's ending
_ROW = re.compile(r"Row #(\d+): ?")


@dataclass(frozen=True)
class TextFile:
    """How a text file is read.

    Attributes:
        path: the file, plain or compressed as its name says.
        names: column names of a file without a header line; None reads the header.
        types: types of columns; None infers them from the first block.
        delimiter: one character between cells.
        encoding: of the file.
        typed: whether types were given: only empty cells are missing then, and quotes have no
            meaning.
    """

    path: Path
    names: Sequence[str] | None = None
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    delimiter: str = ","
    encoding: str = "utf8"
    typed: bool = False

    def stream(self) -> Iterator[pa.RecordBatch]:
        """Yield the file's batches."""
        with self._open() as reader:
            yield from reader

    def _open(self, threads: bool = True) -> csv.CSVStreamingReader:
        names = list(self.names) if self.names else None
        reading = csv.ReadOptions(
            use_threads=threads,
            block_size=_BLOCK_BYTES,
            column_names=names,
            encoding=self.encoding,
        )
        reader = csv.open_csv(self.path, reading, self._parsing(), self._converting())
        _require_text(reader.schema)
        return reader

    def _parsing(self) -> csv.ParseOptions:
        return csv.ParseOptions(delimiter=self.delimiter, quote_char=False if self.typed else '"')

    def _converting(self) -> csv.ConvertOptions:
        return csv.ConvertOptions(
            column_types=dict(self.types),
            strings_can_be_null=True,
            null_values=list(_MISSING[:1] if self.typed else _MISSING),
        )

    def pieces(self, size: int) -> list[TextPiece] | None:
        """Cut the file at line ends into pieces of about ``size`` bytes.

        Returns:
            The pieces, or None where the file can only be read from its start: it is compressed,
            or of another encoding than UTF-8.

        Raises:
            DataError: the first block cannot be parsed.
        """
        if self.encoding != "utf8" or self.path.suffix.lower() in _PACKED:
            return None
        whole = self
        if self.names is None or set(self.names) - set(self.types):
            kinds = self.kinds()
            whole = replace(self, names=list(kinds), types=kinds)
        with self.path.open("rb") as file:
            header, line, total = 0, b"", self.path.stat().st_size
            while self.names is None and not line.strip(b"\r\n\xef\xbb\xbf"):
                line, header = file.readline(), header + 1  # blank lines may precede the header
            found, start = [], file.tell()
            while start < total:
                file.seek(min(start + size, total) - 1)
                file.readline()
                found.append(TextPiece(whole, start, file.tell(), header))
                start = file.tell()
        return found

    def kinds(self) -> dict[str, pa.DataType]:
        """Names and types of all columns: the first block decides, as it does in a stream."""
        try:
            with self._open(threads=False) as reader:  # with threads, errors name no row
                return {column.name: column.type for column in reader.schema}
        except pa.ArrowException as error:
            with self.path.open("rb") as file:
                raise _located(error, self.path, file.read(_BLOCK_BYTES), 0) from error

    def parse(self, data: bytes) -> pa.RecordBatch:
        """Parse lines; the rows are one batch, without one where all lines are blank."""
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(
                use_threads=False, block_size=max(len(data), 1), column_names=list(self.names or ())
            ),
            self._parsing(),
            self._converting(),
        )
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


@dataclass(frozen=True)
class TextPiece:
    """Some whole lines of a text file.

    Attributes:
        file: the file, with all names and types known.
        start: first byte.
        stop: byte after the last one.
        header: lines of the file before its first row.
    """

    file: TextFile
    start: int
    stop: int
    header: int = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, as one batch.

        Raises:
            DataError: as `read`.
        """
        yield self.read()

    def read(self) -> pa.RecordBatch:
        """Read and parse the lines.

        Raises:
            DataError: a line is malformed; the message names the file and the line.
        """
        try:
            with self.file.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.stop - self.start)
            if len(data) < self.stop - self.start:
                raise DataError(f"{self.file.path.name} has become shorter while it was read")
            if not data or data.isspace():
                kinds = pa.schema(list(self.file.types.items()))
                return pa.RecordBatch.from_pylist([], schema=kinds)
            return self.file.parse(data)
        except pa.ArrowException as error:
            raise _located(error, self.file.path, data, self.lines_before()) from error
        except OSError as error:
            raise DataError(f"cannot read {self.file.path.name}: {error}") from error

    def lines_before(self) -> int:
        """Count the lines before the piece, the header too."""
        count, left = 0, self.start
        with self.file.path.open("rb") as file:
            while left and (block := file.read(min(left, 1 << 24))):
                count += block.count(b"\n")
                left -= len(block)
        return count

    def rows_before(self) -> int:
        """Count the rows before the piece, for messages; blank lines count too."""
        return self.lines_before() - self.header

    def where(self) -> str:
        """Name the file and the lines."""
        first = self.lines_before() + 1
        last = replace(self, start=self.stop).lines_before()
        return f"{self.file.path.name}, lines {first} to {max(first, last)}"


def _located(error: pa.ArrowException, path: Path, data: bytes, before: int) -> DataError:
    """Name the file and, where Arrow says the row, the line; both count from 1.

    Arrow passes over blank lines when it counts rows.
    """
    row = _ROW.search(str(error))
    if row is None:
        return DataError(f"cannot read {path.name}: {error}")
    lines = enumerate(data.split(b"\n"), start=before + 1)
    filled = (number for number, line in lines if line.strip(b"\r"))
    line = next(islice(filled, int(row[1]) - 1, None))
    return DataError(f"cannot read {path.name}, line {line}: {_ROW.sub('', str(error))}")


def _require_text(schema: pa.Schema) -> None:
    """Refuse columns that are not text in the file's encoding: Arrow would call them binary."""
    for column in schema:
        if pa.types.is_binary(column.type):
            raise OSError(f"column {column.name!r} is not UTF-8 text")
