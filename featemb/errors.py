"""The exceptions of featemb: every error a user can meet is a `FeatembError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatembError(Exception):
    """Base of all errors raised by featemb."""


class ConfigError(FeatembError, ValueError):
    """A method, codec, model or run setting is unknown or out of range."""


class SchemaError(FeatembError, ValueError):
    """A schema is inconsistent, or an input does not fit it."""


class IdError(FeatembError, IndexError):
    """An id is negative or not below its feature's cardinality."""


class DataError(FeatembError, ValueError):
    """A data file is missing, malformed or does not fit its schema."""


class FormatError(FeatembError, ValueError):
    """A saved file is corrupt, truncated or of an unknown format version."""


class ExportError(FeatembError, RuntimeError):
    """A layer or model cannot be exported to a target, or its outputs there differ."""


class RunError(FeatembError, RuntimeError):
    """A benchmark run or run folder is unusable."""


class StorageError(FeatembError, OSError):
    """A checkpoint or a record could not be written; what was there before is still whole.

    The work can be gone on with, once there is space again.
    """


class Stopped(KeyboardInterrupt):
    """A training was asked to stop; it goes on from its checkpoint.

    Like an interrupt of the keyboard, it is not caught by ``except Exception``.
    """


class BudgetError(FeatembError, ValueError):
    """No configuration of a method fits the byte budget.

    Attributes:
        floor: the smallest number of bytes that the method can reach.
    """

    def __init__(self, message: str, floor: int) -> None:
        super().__init__(message)
        self.floor = floor


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'hash'? Allowed: full, hash`` for an error message."""
    names = sorted(allowed)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Allowed: {', '.join(names) if names else 'nothing'}"
