"""Files of an encoding under way, each with a checksum, and where they lie."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featemb.errors import DataError

Seal = tuple[int, int]  # bytes and CRC-32 of a file


def write_error(path: Path, error: OSError) -> DataError:
    """Say that a file cannot be written, and why: a full disk most of all."""
    return DataError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}")


def put(path: Path, data: Any) -> Seal:
    """Write bytes to a file.

    Raises:
        DataError: the file cannot be written, for the disk is full or for another reason.
    """
    view = memoryview(data).cast("B")
    try:
        with path.open("wb") as file:
            file.write(view)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise write_error(path, error) from error
    return len(view), zlib.crc32(view)


def put_batch(path: Path, columns: Mapping[str, pa.Array]) -> Seal:
    """Write columns of one length as an Arrow file."""
    batch = pa.RecordBatch.from_pydict(dict(columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return put(path, sink.getvalue())


def put_lists(path: Path, columns: Mapping[str, pa.Array]) -> Seal:
    """Write columns of any lengths as an Arrow file: one row, a list a column."""
    return put_batch(path, {name: _one_list(values) for name, values in columns.items()})


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def get_batch(path: Path) -> pa.RecordBatch:
    """Map an Arrow file of one batch into memory."""
    with pa.memory_map(os.fspath(path)) as file:
        return pa.ipc.open_file(file).get_batch(0)


def get_list(path: Path, name: str) -> pa.Array:
    """Map one column that `put_lists` wrote; the others are not touched."""
    with pa.memory_map(os.fspath(path)) as file:
        return pa.ipc.open_file(file).get_batch(0).column(name).flatten()


def put_array(path: Path, array: npt.NDArray[Any]) -> Seal:
    """Write an array as it lies in memory, without a header."""
    return put(path, np.ascontiguousarray(array))


def seal(path: Path) -> Seal | None:
    """Return bytes and CRC-32 of a file, or None where there is none."""
    size, crc = 0, 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except FileNotFoundError:
        return None
    return size, crc
