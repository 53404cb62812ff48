"""Run folders made by hand, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from featemb.benchmarks import metrics, records

ROWS = 800


def config(**changes: Any) -> dict[str, Any]:
    base = {"data": "toy", "model": "dcnv2", "method": "full", "dim": 8, "seed": 0}
    return base | {"ratio": None, "budget": None, "rows": None} | changes


def make(
    folder: Path,
    noise: float = 0.0,
    serving: int = 1000,
    test_seed: int = 0,
    users: int = 0,
    parts: dict[str, int] | None = None,
    **changes: Any,
) -> str:
    """Write a finished run whose scores are worse the more noise they have.

    Args:
        folder: of the runs.
        noise: what spoils the scores.
        serving: bytes.
        test_seed: draws the test rows.
        users: number of users of the test rows; 0 leaves them out.
        parts: serving bytes by part.
        changes: of `config`.
    """
    settings = config(**changes)
    random = np.random.default_rng(test_seed)
    label = (random.random(ROWS) < 0.3).astype(np.int8)
    clean = random.normal(size=ROWS) + 1.5 * label
    # what a run adds is its own: by its seed, and by its method
    own = np.random.default_rng([settings["seed"], len(settings["method"])])
    score = 1 / (1 + np.exp(-(clean + (0.05 + noise) * own.normal(size=ROWS))))
    score = score.astype(np.float32)
    group = random.integers(users, size=ROWS) if users else None
    record = {
        "format": records.FORMAT,
        "run_id": records.run_id(settings),
        "status": "ok",
        "error": None,
        "config": settings,
        "versions": {"featemb": "0", "torch": "0"},
        "git": {"revision": None, "dirty": None},
        "device": {"type": "cpu", "name": "test"},
        "created": "2026-01-01T00:00:00+00:00",
        "data": {
            "name": settings["data"],
            "fingerprint": f"f{test_seed}",
            "rows": {"train": 1, "valid": 1, "test": ROWS},
            "features": 3,
            "values": 10,
        },
        "bytes": {
            "full": 1000,
            "serving": serving,
            "training": 3 * serving,
            "parts": parts or {"rows": serving},
            "training_parts": {"rows": 3 * serving},
            "ratio": 1000 / serving,
            "net": 5,
            "peak_device": None,
            "peak_rss": 1,
        },
        "timings": {"total": 1.0, "step_ms": 2.0, "rows_per_second": 100.0},
        "training": {"epochs_run": 2},
        "metrics": {"test": metrics.summarise(label, score, group)},
    }
    predictions = {"row": np.arange(ROWS), "label": label, "score": score}
    if group is not None:
        predictions["group"] = group
    auc = record["metrics"]["test"]["auc"]["value"]  # type: ignore[index]
    curve = [
        {"stage": "train", "epoch": epoch, "step": epoch, "valid_auc": auc - 0.02 / epoch}
        for epoch in (1, 2)
    ]
    records.write(folder, record, curve, predictions)
    return str(record["run_id"])


def fail(folder: Path, message: str, **changes: Any) -> None:
    settings = config(**changes)
    error = {"type": "BudgetError", "message": message, "traceback": ""}
    record = {
        "format": records.FORMAT,
        "run_id": records.run_id(settings),
        "status": "failed",
        "error": error,
        "config": settings,
        "versions": {},
        "device": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    records.write(folder, record, [], None)


def without_predictions(folder: Path) -> None:
    """Remove all predictions, as from results that are kept."""
    for path in folder.glob("*/predictions.parquet"):
        path.unlink()
