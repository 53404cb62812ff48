"""Files of the result: ``.npy`` arrays written row by row, with a SHA-256 made on the way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featemb.datasets.bulk.storage import write_error
from featemb.datasets.encode import file_digest


class ArrayFile:
    """Writes a ``.npy`` file (format 1.0) of a known shape; a context manager.

    Args:
        path: the file.
        kind: type of the elements, little-endian.
        shape: of the array.

    Raises:
        DataError: the disk is full, or the file cannot be written for another reason.
    """

    def __init__(self, path: Path, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.path = path
        self._kind = kind
        self._digest = hashlib.sha256()
        self._size = 0
        header = {"descr": kind.str, "fortran_order": False, "shape": shape}
        try:
            self._file = path.open("wb")
            np.lib.format.write_array_header_1_0(self, header)
        except OSError as error:
            raise write_error(path, error) from error

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as failed:
            raise write_error(self.path, failed) from failed

    def write(self, data: bytes | memoryview | npt.NDArray[Any]) -> None:
        """Append rows of the array."""
        if isinstance(data, np.ndarray):
            data = np.ascontiguousarray(data, self._kind).reshape(-1).view(np.uint8).data
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._digest.update(data)
        self._size += len(data)

    @property
    def entry(self) -> dict[str, Any]:
        """Path inside of the result's folder, bytes and SHA-256, as the index keeps them."""
        return _entry(self.path, self._size, self._digest.hexdigest())


def entry_of(path: Path) -> dict[str, Any]:
    """Return the index entry of a file that is there."""
    return _entry(path, path.stat().st_size, file_digest(path))


def _entry(path: Path, size: int, digest: str) -> dict[str, Any]:
    return {"path": f"{path.parent.name}/{path.name}", "bytes": size, "sha256": digest}


def settle(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Raises:
        DataError: they cannot be written.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error
