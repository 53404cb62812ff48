"""One encoding at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featemb.errors import DataError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the lock ends with the process, however that ends.

    Raises:
        DataError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: the user sees to it
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is encoding in {os.fspath(folder)!r}: wait for it, or end it"
            ) from error
        yield
