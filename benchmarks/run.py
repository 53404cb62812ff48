"""`run_one`: one run from its configuration to its record."""

from __future__ import annotations

import os
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from featemb import staging
from featemb.benchmarks import environment, exporting, records, sources
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import measure, predict
from featemb.benchmarks.network import full_bytes
from featemb.benchmarks.progress import Quiet, Watcher
from featemb.benchmarks.stopping import now
from featemb.benchmarks.training import Alone, Trained
from featemb.checkpoint import Checkpoint
from featemb.datasets import Dataset
from featemb.errors import FormatError, RunError, StorageError
from featemb.memory import module_bytes
from featemb.models import CTRModel


def run_id(config: RunConfig) -> str:
    """Name of a run's folder; equal for equal answers wanted, wherever computed."""
    return records.run_id(sources.identity(config))


def run_one(
    config: RunConfig,
    runs_dir: str | Path,
    dataset: Dataset | None = None,
    progress: Watcher | None = None,
    checkpoint: bool = False,
    save_model: bool = False,
    checkpoint_minutes: float | None = None,
    keep_checkpoints: int = 1,
    side: Alone | None = None,
) -> dict[str, Any]:
    """Train, freeze and test one network, and write its record.

    An exception becomes a record with status "failed"; an interrupt, `Stopped` and a full disk
    pass through and leave nothing behind but the checkpoint.

    Args:
        config: what to run.
        runs_dir: folder of the runs.
        dataset: the data, where they are loaded already.
        progress: told of start, evaluations and end.
        checkpoint: write all state of the training to ``.checkpoints/<run id>.pt`` in the folder of
            the runs after every evaluation, and go on from there where the file exists. It is
            removed when the run has succeeded, or when it was no checkpoint of this run.
        save_model: write the served model and some test rows into the run's folder, for export.
        checkpoint_minutes: write it this often within an epoch too.
        keep_checkpoints: how many are kept.
        side: how several processes train together; an exception then passes through too, since
            the checkpoint is what they go on from.

    Returns:
        The record, as in ``run.json``.

    Raises:
        StorageError: checkpoint or record cannot be written; the last checkpoint is whole.
    """
    watch = progress or Quiet()
    name = run_id(config)
    watch({"event": "start", "run_id": name})
    record = _frame(config, name)
    curve: list[dict[str, Any]] = []
    state = None
    if checkpoint:
        state = records.checkpoint(runs_dir, name, checkpoint_minutes, keep_checkpoints)
    answer = _tried(config, record, curve, dataset, watch, state, side)
    predictions, served, data = answer or (None, None, None)

    def write_model(folder: Path) -> None:
        if save_model and served is not None and data is not None:
            exporting.save(served, data, record, folder)

    with now().patient():
        records.write(runs_dir, record, curve, predictions, write_model)
        if state is not None and _is_spent(record):
            (side or Alone()).clean(state)
    if record["status"] == "failed" and config.device != "cpu":
        torch.cuda.empty_cache()  # memory that ran out here must not run out in the next run
    watch({"event": "end", "run_id": name} | _verdict(record))
    return record


def _tried(
    config: RunConfig,
    record: dict[str, Any],
    curve: list[dict[str, Any]],
    dataset: Dataset | None,
    watch: Watcher,
    checkpoint: Checkpoint | None,
    side: Alone | None,
) -> tuple[dict[str, Any], CTRModel, Dataset] | None:
    """`_run`, or None where it failed: then the record tells why."""
    try:
        answer = _run(config, record, curve, dataset, watch, checkpoint, side or Alone())
    except StorageError:  # the record of a failure would not be written either
        raise
    except Exception as error:  # one run must not stop the others; it is told in the record
        if side is not None:
            raise
        record["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": _traceback(),
        }
        return None
    record["status"] = "ok"
    return answer


def _is_spent(record: dict[str, Any]) -> bool:
    """Whether the checkpoint is of no more use: the run succeeded, or could not read it."""
    error = record["error"]
    return error is None or error["type"] == FormatError.__name__


def _traceback() -> str:
    """The traceback of the error at hand, with the library's files by their own names."""
    home = str(Path(__file__).resolve().parent.parent) + os.sep
    return traceback.format_exc().replace(home, "")


def _frame(config: RunConfig, name: str) -> dict[str, Any]:
    """The parts of a record that are known before the run."""
    return {
        "format": records.FORMAT,
        "run_id": name,
        "status": "failed",
        "error": None,
        "config": sources.identity(config),
        "versions": environment.versions(),
        "git": environment.git(),
        "device": environment.device(config.device),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _run(
    config: RunConfig,
    record: dict[str, Any],
    curve: list[dict[str, Any]],
    dataset: Dataset | None,
    watch: Watcher,
    checkpoint: Checkpoint | None,
    side: Alone,
) -> tuple[dict[str, Any], CTRModel, Dataset]:
    """Fill a record and a curve; return the test predictions, the served model and the data."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    record["device"] = environment.device(config.device)
    environment.start_peak(config.device)
    clock = _Clock()
    dataset = sources.load(config) if dataset is None else dataset
    dataset = sources.subsample(dataset, config.rows, config.seed)
    record["data"] = sources.describe(dataset)
    clock.lap("load")
    with torch.random.fork_rng():  # dropout draws from the global generator
        torch.manual_seed(config.seed)
        net = side.build(config, dataset.schema)
        record["solved"] = str(staging.layers(net)[0].spec)
        clock.lap("build")

        def note(row: dict[str, Any]) -> None:
            curve.append(row)
            event = {"event": "epoch", "run_id": record["run_id"], "epochs": config.epochs}
            watch(event | row)

        net, trained = side.run(net, config, dataset, note, checkpoint)
    clock.lap("train")
    if side.about:
        record["distributed"] = dict(side.about)
        config = config.at(device="cpu")
    frozen = net.freeze()
    environment.synchronize(config.device)
    clock.lap("freeze")
    record["bytes"] = _bytes(net, frozen, trained)
    splits, device = dataset.splits, torch.device(config.device)
    score = {
        part: predict(frozen, splits[part], config.eval_batch_size, device)
        for part in ("valid", "test")
    }
    record["metrics"] = {part: measure(splits[part], score[part]) for part in score}
    record["codecs"] = _coded(net, config, dataset)
    clock.lap("evaluate")
    record["bytes"] |= {
        "peak_device": environment.peak_device(config.device),
        "peak_rss": environment.peak_rss(),
    }
    record["training"] = _training(trained, config.kernel)
    record["timings"] = _timings(clock, trained, config, len(splits["train"]))
    return sources.predictions(splits["test"], score["test"]), frozen, dataset


def _bytes(net: CTRModel, frozen: CTRModel, trained: Trained) -> dict[str, Any]:
    """Count the frozen layers' tensors, and hold the layers' own word against it."""
    parts: dict[str, int] = {}
    for layer in frozen.embeddings():
        for part, size in module_bytes(layer).items():
            parts[part] = parts.get(part, 0) + size
    serving, claimed = sum(parts.values()), net.memory().serving
    if serving != claimed:
        raise RunError(f"the frozen layers hold {serving:,} bytes, memory() says {claimed:,}")
    full = full_bytes(net)
    return {
        "full": full,
        "serving": serving,
        "training": sum(trained.bytes.values()),
        "parts": parts,
        "training_parts": trained.bytes,
        "ratio": full / serving if serving else None,
        "net": frozen.net_bytes(),
    }


def _coded(net: CTRModel, config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Score the trained network in the form that each codec of the run gives it."""
    splits, device = dataset.splits, torch.device(config.device)
    found: dict[str, Any] = {}
    for codec in config.codecs:
        began = time.perf_counter()
        served = net.freeze(codec)
        seconds = time.perf_counter() - began
        score = {
            part: predict(served, splits[part], config.eval_batch_size, device)
            for part in ("valid", "test")
        }
        found[codec] = {
            "serving": sum(sum(module_bytes(one).values()) for one in served.embeddings()),
            "freeze_seconds": seconds,
            "metrics": {part: measure(splits[part], score[part]) for part in score},
        }
    return found


def _training(trained: Trained, kernel: str) -> dict[str, Any]:
    history = trained.history
    stage = trained.curve[-1]["stage"]
    return {
        "epochs_run": max(row["epoch"] for row in trained.curve if row["stage"] == stage),
        "best_epoch": history.best_epoch,
        "best_valid_auc": history.best_score,
        "stopped_early": history.stopped_early,
        "kernel": kernel,
    }


def _timings(clock: _Clock, trained: Trained, config: RunConfig, rows: int) -> dict[str, float]:
    """Seconds by phase; validation during training counts as evaluation.

    Training and validation count from the run's beginning, also where a checkpoint was gone on
    from, the other phases from that of the process.
    """
    phases = clock.seconds | {
        "train": trained.history.seconds - trained.history.evaluate_seconds,
        "evaluate": clock.seconds["evaluate"] + trained.history.evaluate_seconds,
    }
    steps_an_epoch = -(-rows // config.batch_size)
    seen = rows * trained.history.steps / steps_an_epoch
    return {
        **phases,
        "total": sum(phases.values()),
        "step_ms": trained.history.step_seconds * 1000,
        "rows_per_second": seen / max(phases["train"], 1e-9),
    }


def _verdict(record: dict[str, Any]) -> dict[str, str]:
    """Status and one line on it."""
    error = record["error"]
    if error is not None:
        return {"status": "failed", "message": f"{error['type']}: {error['message']}"}
    auc = record["metrics"]["test"]["auc"]
    text = "-" if auc is None else f"{auc['value']:.5f}"
    return {"status": "ok", "message": f"AUC {text}, {record['bytes']['serving']:,} bytes"}


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
