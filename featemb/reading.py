"""Batches from the middle of an epoch on: what a training that goes on reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, TypeVar

import torch

from featemb.errors import RunError
from featemb.history import Batch, Batches

T = TypeVar("T")


def skipped(batches: Iterable[T], number: int) -> tuple[Iterator[T], int]:
    """Return the batches behind the first ``number``, and how many were passed over.

    Batches that have a method ``skip(number) -> passed`` are asked to, the others are read. Reading
    them leaves torch's random state as it was: a loader may draw from it, and what it drew before
    an interruption is in the state that was restored.
    """
    if not number:
        return iter(batches), 0
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        skip: Any = getattr(batches, "skip", None)
        if skip is not None:
            passed = int(skip(number))
            return iter(batches), passed
        found, passed = iter(batches), 0
        for _ in range(number):
            if next(found, None) is None:
                break
            passed += 1
    return found, passed


def guarded(batches: Iterator[T], failed: Callable[[], None]) -> Iterator[T]:
    """Pass batches on; where they fail, call a function before the error goes on its way."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception:
            failed()
            raise
        yield batch


def endless(batches: Batches | None, number: int) -> Iterator[Batch]:
    """Go over the batches of epoch after epoch, behind the first ``number`` of them.

    Raises:
        RunError: an epoch has none.
    """
    assert batches is not None
    for epoch in count():
        found, passed = skipped(batches(epoch), number)
        number -= passed
        empty = not passed
        for batch in found:
            empty = False
            yield batch
        if empty:
            raise RunError("held_out gives no batches")
