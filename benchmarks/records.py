"""Run folders: one run, one folder, written atomically; reports read nothing else.

``RUNS/<run_id>/`` holds ``run.json`` (see docs/benchmarks.md), ``curve.parquet`` (a row an
evaluation), ``predictions.parquet`` (a row a test row) and, where it was asked for,
``model.safetensors`` (the served model). A run is written to a private folder
beside its place and moved there whole. `lock` gives one process at a time the right to do a run;
the operating system frees it when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featemb.checkpoint import Checkpoint
from featemb.errors import RunError, StorageError
from featemb.files import replacing

FORMAT = 1
TUNED = "tuned.json"
_REQUIRED = ("format", "run_id", "status", "error", "config", "versions", "device", "created")
_REQUIRED_OK = ("data", "bytes", "timings", "training", "metrics")
_CURVE = pa.schema(
    [
        ("stage", pa.string()),
        ("epoch", pa.int64()),
        ("step", pa.int64()),
        ("seconds", pa.float64()),
        ("train_loss", pa.float64()),
        ("valid_auc", pa.float64()),
        ("valid_logloss", pa.float64()),
    ]
)


def run_id(config: Mapping[str, Any]) -> str:
    """Return the name of a run's folder: readable words, and 8 hex digits of the whole config."""
    text = json.dumps(dict(config), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    size = "full"
    if config.get("ratio") is not None:
        size = f"x{config['ratio']:g}"
    elif config.get("budget") is not None:
        size = f"{config['budget']}B"
    words = [config["data"], config["model"], config["method"], size, f"s{config['seed']}"]
    return "-".join([*(slug(str(word)) for word in words), digest])


def slug(text: str) -> str:
    """Return a text as a safe part of a file name, at most 48 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:48] or "_"


def write(
    runs_dir: str | os.PathLike[str],
    record: Mapping[str, Any],
    curve: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Any] | None,
    more: Callable[[Path], None] | None = None,
) -> Path:
    """Write a run's folder atomically and return it.

    A finished run is kept as it is; the record of a failed one is replaced.

    Args:
        runs_dir: folder of the runs, made where needed.
        record: as in ``run.json``.
        curve: rows of ``curve.parquet``.
        predictions: columns of ``predictions.parquet``, or None for a failed run.
        more: writes further files into the folder that it is given.

    Raises:
        StorageError: the disk is full or not writable; what was there is as it was.
    """
    folder = Path(runs_dir)
    name = str(record["run_id"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(dir=folder, prefix=f".tmp-{name}-"))
        return _write(private, record, curve, predictions, more)
    except OSError as error:
        raise StorageError(
            f"the record {os.fspath(folder / name)!r} could not be written ({error}); make space "
            "and start the same again: with a checkpoint it goes on from there"
        ) from error


def _write(
    private: Path,
    record: Mapping[str, Any],
    curve: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Any] | None,
    more: Callable[[Path], None] | None,
) -> Path:
    """Write the files to a private folder, and move it to its place."""
    try:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (private / "run.json").write_text(text + "\n", encoding="utf8")
        pq.write_table(
            pa.Table.from_pylist([dict(row) for row in curve], _CURVE), private / "curve.parquet"
        )
        if predictions is not None:
            pq.write_table(
                pa.table(dict(predictions)), private / "predictions.parquet", compression="zstd"
            )
        if more is not None:
            more(private)
        for path in private.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return _move(private, private.parent / str(record["run_id"]))
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _move(private: Path, target: Path) -> Path:
    if status(target.parent, target.name) == "ok":
        return target
    private.chmod(0o755)  # mkdtemp makes folders that only their owner can read
    if target.exists():
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".tmp-old-"))
        os.replace(target, aside / target.name)
        os.replace(private, target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(private, target)
    return target


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a run's record.

    Raises:
        RunError: the folder holds no readable record of this format.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a readable record: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise RunError(f"{path} has format {found!r}, this version reads {FORMAT}")
    required = _REQUIRED + (_REQUIRED_OK if record.get("status") == "ok" else ())
    missing = [name for name in required if name not in record]
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)}")
    return record


def checkpoint(
    runs_dir: str | os.PathLike[str], name: str, minutes: float | None = None, keep: int = 1
) -> Checkpoint:
    """Return a run's checkpoint; call it under the run's `lock`.

    Files that a killed process had half written there are removed.

    Args:
        runs_dir: folder of the runs.
        name: the run's id.
        minutes: as `featemb.Checkpoint`.
        keep: as `featemb.Checkpoint`.
    """
    folder = Path(runs_dir) / ".checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f".{name}.pt.*"):
        stale.unlink()
    return Checkpoint(folder / f"{name}.pt", minutes, keep)


def status(runs_dir: str | os.PathLike[str], name: str) -> str | None:
    """Return "ok" or "failed" of a recorded run; None where there is no readable record."""
    if not (Path(runs_dir) / name / "run.json").is_file():
        return None
    try:
        return str(read(Path(runs_dir) / name)["status"])
    except RunError:
        return None


@dataclass(frozen=True)
class Runs:
    """The records of a folder.

    Attributes:
        records: readable ones, by run id, without runs that only served to choose settings.
        unreadable: folders that hold none, and why.
    """

    records: Mapping[str, dict[str, Any]]
    unreadable: Mapping[str, str]


def read_all(runs_dir: str | os.PathLike[str]) -> Runs:
    """Read every record of a folder, sorted by run id; private folders are passed over.

    Raises:
        RunError: there is no such folder.
    """
    if not Path(runs_dir).is_dir():
        raise RunError(f"there is no folder {os.fspath(runs_dir)!r}")
    records, unreadable = {}, {}
    passed = {"report", *read_tuned(runs_dir)["only_tuning"]}
    for folder in sorted(Path(runs_dir).iterdir()):
        if not folder.is_dir() or folder.name.startswith(".") or folder.name in passed:
            continue
        try:
            records[folder.name] = read(folder)
        except RunError as error:
            unreadable[folder.name] = str(error)
    return Runs(records, unreadable)


def read_tuned(runs_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read which settings a folder's sweeps chose, and by which runs (`protocol.tune`).

    Raises:
        RunError: there is such a file, and it is not readable.
    """
    path = Path(runs_dir) / TUNED
    if not path.is_file():
        return {"format": FORMAT, "choices": [], "only_tuning": []}
    try:
        document = json.loads(path.read_text(encoding="utf8"))
        if document["format"] != FORMAT:
            raise RunError(f"{path} has format {document['format']!r}, this version reads {FORMAT}")
        return {key: document[key] for key in ("format", "choices", "only_tuning")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} does not tell what was tuned: {error!r}") from error


def write_tuned(runs_dir: str | os.PathLike[str], choices: list[Any], aside: Iterable[str]) -> None:
    """Write which settings were chosen, and the ids of the runs that only served to choose."""
    document = {"format": FORMAT, "choices": choices, "only_tuning": sorted(aside)}
    with replacing(Path(runs_dir) / TUNED) as path:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


@contextlib.contextmanager
def lock(runs_dir: str | os.PathLike[str], name: str) -> Iterator[bool]:
    """Hold the right to do a run; gives False at once where a living process holds it."""
    folder = Path(runs_dir) / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        _clean(Path(runs_dir), name)
        yield True


def _clean(folder: Path, name: str) -> None:
    """Remove private folders of a run whose process died: the lock says that none is alive."""
    for stale in folder.glob(f".tmp-{name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
