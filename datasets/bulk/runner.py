"""Tasks on several processes, each done once: what is on disk already is not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa

from featemb.datasets.bulk.storage import seal, write_error
from featemb.errors import DataError

Result = dict[str, Any]


class Task(NamedTuple):
    """A call whose result is kept.

    Attributes:
        name: of its marker, a file.
        call: a function of a module, whose result is JSON, with ``files`` for their checksums.
        arguments: of the call.
    """

    name: str
    call: Callable[..., Result]
    arguments: tuple[Any, ...]


class Runner:
    """Runs tasks; a context manager that owns the processes.

    Args:
        folder: where files are made, and a marker for each finished task.
        workers: number of processes; with 1, tasks run here.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self._folder = folder
        self._markers = folder / "done"
        self._markers.mkdir(exist_ok=True)
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self.reused = 0

    def __enter__(self) -> Runner:
        if self._workers > 1:
            # Workers use numpy and Arrow alone, so that a fork of a process with threads is safe;
            # it needs no importable main module and shares what is loaded.
            method = "fork" if sys.platform == "linux" else "spawn"
            context = multiprocessing.get_context(method)
            self._pool = ProcessPoolExecutor(self._workers, context, _begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the tasks' results in order; only a few tasks are in memory at once.

        Raises:
            DataError: a task failed, or a process died.
        """
        waiting: deque[tuple[Task, Result | Future[Result]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, self._start(task)))
                while len(waiting) > 2 * self._workers:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that encodes has died: killed, or out of memory. What is done is kept; "
                "the same call goes on, with fewer workers or less memory if need be"
            ) from error

    def _start(self, task: Task) -> Result | Future[Result]:
        known = self._known(task.name)
        if known is not None:
            self.reused += 1
            return known
        if self._pool is None:
            return task.call(*task.arguments)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            return self._pool.submit(task.call, *task.arguments)

    def _finish(self, task: Task, result: Result | Future[Result]) -> Result:
        if isinstance(result, Future):
            result = result.result()
        path = self._marker(task.name)
        if not path.exists():
            _put_json(path, result)
        return result

    def _marker(self, name: str) -> Path:
        return self._markers / f"{name}.json"

    def _known(self, name: str) -> Result | None:
        """Return the result of a finished task whose files are as it left them."""
        try:
            result: Result = json.loads(self._marker(name).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            result = {"files": {"": None}}
        for path, expected in result.get("files", {}).items():
            if expected is None or seal(self._folder / path) != tuple(expected):
                self._marker(name).unlink()
                return None
        return result


def _put_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps(value), "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error


def _begin() -> None:
    """Set up a process: one thread, and an end when its parent ends; an interrupt is for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
