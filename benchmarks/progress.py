"""Progress of runs on the terminal: bars on a tty, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Watcher(Protocol):
    """What a run and a sweep report to.

    Events are dicts with a key "event": "start" (run_id), "epoch" (run_id, stage, epoch, epochs,
    train_loss, valid_auc), "end" (run_id, status, message), "skip" (run_id, reason).
    """

    def __call__(self, event: dict[str, Any]) -> None:
        """Take note of one event."""


class Quiet:
    """Shows nothing."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Ignore the event."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class Lines:
    """One line a run that starts, ends or is skipped; for logs.

    Args:
        total: number of runs.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.began = time.perf_counter()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Print the event."""
        if event["event"] == "epoch":
            return
        if event["event"] != "start":
            self.done += 1
        seconds = time.perf_counter() - self.began
        print(f"[{self.done}/{self.total} {seconds:.0f} s] {_line(event)}", flush=True)


class Bars:
    """A bar over all runs, and one line a running run with its epoch and validation AUC.

    Args:
        total: number of runs.
    """

    def __init__(self, total: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.bars: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.all = self.bars.add_task("runs", total=total, note="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bars."""
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Move the bars."""
        run_id = event["run_id"]
        if event["event"] == "start":
            self.tasks[run_id] = self.bars.add_task(run_id, total=None, note="loading")
        elif event["event"] == "epoch":
            note = f"{event['stage']} loss {event['train_loss']:.4f}"
            if event["valid_auc"] is not None:
                note += f" AUC {event['valid_auc']:.5f}"
            self.bars.update(
                self.tasks[run_id], completed=event["epoch"], total=event["epochs"], note=note
            )
        else:
            if run_id in self.tasks:
                self.bars.remove_task(self.tasks.pop(run_id))
            if event["event"] == "end":
                self.bars.console.print(_line(event), highlight=False)
            self.bars.advance(self.all)


def watcher(total: int, quiet: bool = False) -> Quiet | Lines | Bars:
    """Return the form of progress that suits the standard output."""
    if quiet:
        return Quiet()
    return Bars(total) if sys.stdout.isatty() else Lines(total)


def _line(event: dict[str, Any]) -> str:
    rest = " ".join(str(event[key]) for key in ("status", "reason", "message") if event.get(key))
    return f"{event['event']} {event['run_id']} {rest}".rstrip()
