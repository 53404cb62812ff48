"""What the page's script reads: rows, runs and their curves, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from featemb.benchmarks.paired import Estimate
from featemb.benchmarks.report.aggregate import Against, Interval, Row
from featemb.benchmarks.report.looks import TITLES, Look
from featemb.benchmarks.report.pareto import front
from featemb.errors import RunError

Record = Mapping[str, Any]
_CURVE = ("stage", "epoch", "step", "train_loss", "valid_auc", "valid_logloss")


def row_id(row: Row) -> str:
    """Return a name for a row that stays when the report is made again, for links."""
    text = "\n".join((row.data, row.model, row.label, row.asked))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def payload(
    rows: Sequence[Row],
    records: Mapping[str, Record],
    looks: Mapping[str, Look],
    folder: str | Path,
) -> dict[str, Any]:
    """Return all that the script of the page needs.

    Args:
        rows: of the report.
        records: of the folder, by run id.
        looks: by method.
        folder: of the runs, for their curves.

    Raises:
        RunError: a curve is there and not readable.
    """
    groups = sorted({(row.data, row.model) for row in rows})
    best = {
        row_id(row)
        for group in groups
        for row in front([row for row in rows if (row.data, row.model) == group])
    }
    runs = {name: _run(records[name], Path(folder)) for row in rows for name in row.runs}
    return {
        "groups": [{"data": data, "model": model} for data, model in groups],
        "families": TITLES,
        "looks": {method: vars(look) for method, look in looks.items()},
        "rows": [_row(row, row_id(row) in best, records) for row in rows],
        "runs": runs,
    }


def to_json(values: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the script element that holds it."""
    # "</" would end the element early, whatever a run's name holds, and "<!--" hide its end
    return json.dumps(values, allow_nan=False).replace("<", "\\u003c")


def _row(row: Row, best: bool, records: Mapping[str, Record]) -> dict[str, Any]:
    return {
        "id": row_id(row),
        "data": row.data,
        "model": row.model,
        "method": row.method,
        "label": row.label,
        "asked": row.asked,
        "full": row.is_full,
        "best": best,
        "serving": row.serving,
        "ratio": row.ratio,
        "parts": row.parts,
        "seeds": row.seeds,
        "runs": row.runs,
        "auc": _interval(row.auc),
        "logloss": _interval(row.logloss),
        "gauc": row.gauc and _interval(row.gauc),
        "to_full": _against(row.to_full),
        "to_hash": _against(row.to_hash),
        "hover": _hover(row, records[row.runs[0]]),
    }


def _interval(one: Interval) -> list[float]:
    return [one.value, one.low, one.high]


def _against(one: Against | None) -> dict[str, Any] | None:
    """Return the paired differences by metric, and the verdict."""
    if one is None or one.compared.auc is None:
        return None
    compared = {name: getattr(one.compared, name) for name in ("auc", "logloss", "gauc")}
    values = {name: _bounds(value) for name, value in compared.items() if value is not None}
    return values | {"p": one.p, "verdict": one.verdict}


def _bounds(one: Estimate) -> list[float]:
    return [one.value, one.low, one.high]


def _hover(row: Row, record: Record) -> str:
    """Return the text of a point; plotly reads it as HTML."""
    solved = record.get("solved")
    parts = ", ".join(f"{part} {size:,}" for part, size in row.parts.items())
    lines = [
        f"<b>{escape(row.label)}</b> {escape(row.asked)}",
        *([escape(str(solved))] if solved and solved != row.method else []),
        f"{row.serving:,} bytes, {row.ratio:.2f}x ({escape(parts)})",
        f"AUC {row.auc.value:.4f} [{row.auc.low:.4f}, {row.auc.high:.4f}]",
    ]
    for name, against in (("full", row.to_full), ("hash", row.to_hash)):
        if against is not None and against.compared.auc is not None and against.p is not None:
            one = against.compared.auc
            lines.append(
                f"to {name} {one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}], "
                f"p {against.p:.2g} (Holm)"
            )
    seeds = "1 seed" if row.seeds == 1 else f"{row.seeds} seeds"
    return "<br>".join([*lines, f"{seeds}, {row.seconds:,.0f} s of training a run"])


def _run(record: Record, folder: Path) -> dict[str, Any]:
    shown = ("config", "created", "device", "versions", "git", "bytes", "training", "timings")
    facts = {name: record[name] for name in shown if name in record}
    if "solved" in record:
        facts["solved"] = record["solved"]
    test = record["metrics"]["test"]["auc"]["value"]
    path = folder / str(record["run_id"]) / "curve.parquet"
    return {"seed": record["config"]["seed"], "test": test, "facts": facts, "curve": _curve(path)}


def _curve(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a run's curve; none where it was left out.

    Raises:
        RunError: the file is there and not readable.
    """
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path, columns=list(_CURVE))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not readable: {error}") from error
    return {
        name: [_finite(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: a loss that is not finite becomes none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
