"""`Stopping`: what SIGTERM does to a run: it ends behind the step at hand, with its checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from featemb.errors import Stopped

EXIT = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended


class Stopping:
    """Whether the process was told to end, and whether that is heard at once.

    Inside of `patient`, the work at hand is finished first and asks `asked`; anywhere else
    `Stopped` is raised where the process stands.
    """

    def __init__(self) -> None:
        self._asked = self._patient = False

    def asked(self) -> bool:
        """Whether the process was told to end."""
        return self._asked

    def hear(self, _number: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Take the signal; only the first one counts.

        Raises:
            Stopped: nothing asks for patience.
        """
        if self._asked:
            return
        self._asked = True
        if not self._patient:
            raise Stopped(_TEXT)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Finish what is inside first.

        Raises:
            Stopped: the signal came, and what was inside has ended.
        """
        before, self._patient = self._patient, True
        try:
            yield
        finally:
            self._patient = before
        if self._asked and not before:
            raise Stopped(_TEXT)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside of `patient`: hear the signal at once again.

        Raises:
            Stopped: the signal came before.
        """
        if self._asked:
            raise Stopped(_TEXT)
        before, self._patient = self._patient, False
        try:
            yield
        finally:
            self._patient = before


_TEXT = "outside of a step, as asked"
_now = Stopping()


def now() -> Stopping:
    """Return that of this process; nothing is heard outside of `heard`."""
    return _now


@contextmanager
def heard() -> Iterator[None]:
    """Hear SIGTERM inside; elsewhere than in the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _now
    _now = Stopping()
    before = signal.signal(signal.SIGTERM, _now.hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _now = Stopping()
