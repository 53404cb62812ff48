"""`sweep`: many runs in one folder, resumable, shared with other sweeps in the same folder."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from featemb.benchmarks import records, sources, stopping
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.progress import Quiet, Watcher
from featemb.benchmarks.run import run_id, run_one
from featemb.errors import RunError, Stopped

_POLL_SECONDS = 0.5


def sweep(
    configs: Iterable[RunConfig],
    runs_dir: str | Path,
    *,
    retry_failed: bool = False,
    jobs: int = 1,
    progress: Watcher | None = None,
    checkpoint: bool = False,
    save_model: bool = False,
    checkpoint_minutes: float | None = None,
    keep_checkpoints: int = 1,
) -> list[dict[str, Any]]:
    """Do the runs that a folder does not hold yet.

    Every run is guarded by a lock, so several sweeps may share a folder: a run that another
    process does is waited for at the end, and taken over if that process dies. A killed sweep
    loses only the runs that were under way, or with checkpoints a part of them.

    Args:
        configs: the runs.
        runs_dir: folder of the runs; made where it is missing.
        retry_failed: do runs again that are recorded as failed.
        jobs: processes; with more than one, each gets an equal part of the CPU threads unless
            the runs set their own.
        progress: told of the runs' events.
        checkpoint: go on with runs that were under way (see `run_one`).
        save_model: keep the served models (see `run_one`).
        checkpoint_minutes: as `run_one`.
        keep_checkpoints: as `run_one`.

    Returns:
        The records of all these runs.

    Raises:
        DataError: data are missing or malformed; nothing has been run.
        RunError: a worker process died; its run is not recorded, the others are.
    """
    todo = {run_id(config): config for config in configs}
    folder = Path(runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    watch = progress or Quiet()
    _load_data(config for name, config in todo.items() if not is_done(folder, name, retry_failed))
    options: dict[str, Any] = {"checkpoint": checkpoint, "save_model": save_model}
    options |= {"checkpoint_minutes": checkpoint_minutes, "keep_checkpoints": keep_checkpoints}
    if jobs == 1:
        _work(todo, folder, retry_failed, watch, options)
    else:
        _share(todo, folder, retry_failed, watch, jobs, options)
    return [records.read(folder / name) for name in todo]


def _load_data(configs: Iterable[RunConfig]) -> None:
    """Load every data set once before the first run: what is missing shows at once.

    It also encodes a new data set once, not in every worker.
    """
    seen: list[tuple[str, Any]] = []
    for config in configs:
        wanted = (config.data, config.data_options)
        if wanted not in seen:
            seen.append(wanted)
            sources.load(config)


def is_done(folder: Path, name: str, retry_failed: bool = False) -> bool:
    """Whether a folder holds a run's record, so that the run need not be done."""
    status = records.status(folder, name)
    return status == "ok" or (status == "failed" and not retry_failed)


def _work(
    todo: dict[str, RunConfig],
    folder: Path,
    retry_failed: bool,
    watch: Watcher,
    options: dict[str, Any],
) -> None:
    """Do the runs that are not done; come back to those that other processes hold."""
    tried: set[str] = set()  # a failed run is retried once, not for ever
    waiting = list(todo)
    while waiting:
        busy = []
        for name in waiting:
            if is_done(folder, name, retry_failed and name not in tried):
                watch({"event": "skip", "run_id": name, "reason": "recorded already"})
                continue
            with records.lock(folder, name) as held:
                if not held:
                    busy.append(name)
                    tried.add(name)  # its other owner's failure counts
                elif is_done(folder, name, retry_failed and name not in tried):
                    watch({"event": "skip", "run_id": name, "reason": "done by another process"})
                else:
                    run_one(todo[name], folder, progress=watch, **options)
        if len(busy) == len(waiting):
            time.sleep(_POLL_SECONDS)
        waiting = busy


def _share(
    todo: dict[str, RunConfig],
    folder: Path,
    retry_failed: bool,
    watch: Watcher,
    jobs: int,
    options: dict[str, Any],
) -> None:
    """Do the runs in several processes: each works on the same list, the locks share it out."""
    left = {}
    for name, config in todo.items():
        if is_done(folder, name, retry_failed):
            watch({"event": "skip", "run_id": name, "reason": "recorded already"})
        else:
            left[name] = config
    context = multiprocessing.get_context("spawn")  # fork and CUDA do not go together
    events: multiprocessing.Queue[dict[str, Any]] = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    settings = [config.at(threads=config.threads or threads).to_dict() for config in left.values()]
    workers = [
        context.Process(target=_worker, args=(settings, str(folder), retry_failed, events, options))
        for _ in range(min(jobs, len(left)))
    ]
    for worker in workers:
        worker.start()
    try:
        _relay(events, watch, lambda: any(worker.is_alive() for worker in workers))
    finally:
        for worker in workers:
            worker.terminate()  # only after an interrupt is one still there
            worker.join()
    dead = [worker.exitcode for worker in workers if worker.exitcode]
    if dead:
        raise RunError(
            f"{len(dead)} of {len(workers)} worker processes died (exit codes {dead}); "
            "finished runs are kept, start the sweep again to continue"
        )


def _worker(
    settings: Sequence[dict[str, Any]],
    folder: str,
    retry_failed: bool,
    events: multiprocessing.Queue[dict[str, Any]],
    options: dict[str, Any],
) -> None:
    parent = multiprocessing.parent_process()

    def send(event: dict[str, Any]) -> None:
        if parent is not None and not parent.is_alive():
            sys.exit(1)  # the sweep was killed: its workers end too
        events.put(event)

    configs = (RunConfig.from_dict(one) for one in settings)
    todo = {run_id(config): config for config in configs}
    try:
        with stopping.heard() if options["checkpoint"] else contextlib.nullcontext():
            _work(todo, Path(folder), retry_failed, send, options)
    except Stopped:
        sys.exit(stopping.EXIT)


def _relay(
    events: multiprocessing.Queue[dict[str, Any]], watch: Watcher, alive: Callable[[], bool]
) -> None:
    """Pass the workers' events on; a run that several of them see done is told once."""
    told: set[str] = set()
    while True:
        last = not alive()
        try:
            while True:
                event = events.get(timeout=0.01 if last else _POLL_SECONDS)
                closes = event["event"] in ("end", "skip")
                if not (closes and event["run_id"] in told):
                    watch(event)
                if closes:
                    told.add(event["run_id"])
        except queue.Empty:
            if last:
                return
