"""Atomic files: whole, or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featemb.errors import FormatError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside the target; on leaving, it takes the target's place at once.

    Raises:
        FormatError: the target's folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FormatError(f"there is no folder {os.fspath(target.parent)!r} to save into")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # writers may make files that only their owner reads
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
