"""The table of a data set and model: one row a method and size, with intervals and p-values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from featemb.benchmarks.report.aggregate import Against, Interval, Row
from featemb.benchmarks.report.payload import row_id

_HEAD = (
    ("method", ""),
    ("asked", "ratio or bytes asked for; - is the method's own size"),
    ("ratio", "bytes of the full table / serving bytes"),
    ("MB", "serving bytes, 10^6"),
    ("AUC", "test AUC, mean over seeds, with its 95% interval"),
    ("&Delta; AUC to full", "paired by test row and seed, with its 95% interval"),
    ("p", "p-value of the difference to full, by Holm's rule"),
    ("verdict", "at the 5% level"),
    ("&Delta; AUC to hash", "against plain hashing of the same asked size"),
    ("p", "p-value of the difference to hash, by Holm's rule"),
    ("verdict", "at the 5% level"),
    ("LogLoss", "with its 95% interval"),
    ("&Delta; LogLoss to full", "paired by test row and seed, with its 95% interval"),
    ("p", "p-value of the difference in LogLoss to full, by Holm's rule"),
    ("gAUC", "AUC by user, with its 95% interval"),
    ("calibration", "mean prediction / mean label"),
    ("seeds", "finished runs"),
    ("train s", "seconds of training, mean over seeds"),
    ("epochs", "mean over seeds"),
    ("step ms", "median training step"),
    ("rows/s", "training rows a second"),
    ("training MB", "parameters, gradients and optimizer state of the embeddings, 10^6"),
    ("bytes by part", "of the frozen layers"),
)
Cell = tuple[str, float | str]
_NONE: Cell = ("", "")
_REFERENCE = "reference"


def table(rows: Sequence[Row]) -> str:
    """Return the table as HTML; a cell's ``data-key`` is what a column is sorted by."""
    lines = [_cells(row) for row in rows]
    # what no run of the table has, such as users or a test, takes no room
    filled = [any(one[n][1] not in ("", _REFERENCE) for one in lines) for n in range(len(_HEAD))]
    head = "".join(
        f'<th scope="col" title="{escape(why, quote=True)}"><button>{name}</button></th>'
        for name, why in itertools.compress(_HEAD, filled)
    )
    body = "".join(
        _row(row, list(itertools.compress(line, filled)))
        for row, line in zip(rows, lines, strict=True)
    )
    return (
        '<div class="scroll" tabindex="-1"><table class="rows"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Row, cells: Sequence[Cell]) -> str:
    first, *others = (_cell(text, key) for text, key in cells)
    first = first.replace("<td", '<th scope="row"', 1).replace("</td>", "</th>")
    return f'<tr data-id="{row_id(row)}" tabindex="0">{first}{"".join(others)}</tr>'


def _cells(row: Row) -> list[Cell]:
    parts = ", ".join(f"{part} {size:,}" for part, size in row.parts.items())
    return [
        (escape(row.label), row.label),
        (escape(row.asked), row.ratio),
        (f"{row.ratio:.2f}x", row.ratio),
        (_megabytes(row.serving), row.serving),
        _interval(row.auc),
        *_against(row.to_full, row.is_full),
        *_against(row.to_hash, row.method == "hash" and row.asked != "-"),
        _interval(row.logloss),
        *_logloss(row.to_full),
        _NONE if row.gauc is None else _interval(row.gauc),
        (f"{row.calibration:.3f}", row.calibration),
        (str(row.seeds), row.seeds),
        (f"{row.seconds:,.0f}", row.seconds),
        (f"{row.epochs:.1f}", row.epochs),
        (f"{row.step_ms:.2f}", row.step_ms),
        (f"{row.rows_per_second:,.0f}", row.rows_per_second),
        (_megabytes(row.training), row.training),
        (escape(parts), parts),
    ]


def _cell(text: str, key: float | str) -> str:
    return f'<td data-key="{escape(str(key), quote=True)}">{text}</td>'


def _interval(one: Interval) -> Cell:
    return f"{one.value:.4f} <small>[{one.low:.4f}, {one.high:.4f}]</small>", one.value


def _against(one: Against | None, reference: bool) -> tuple[Cell, Cell, Cell]:
    if one is None:
        word: Cell = (f'<span class="reference">{_REFERENCE}</span>', _REFERENCE)
        return _NONE, _NONE, word if reference else _NONE
    change = one.compared.auc
    verdict: Cell = (f'<span class="{one.verdict.split()[0]}">{one.verdict}</span>', one.verdict)
    if change is None or one.p is None:
        return _NONE, _NONE, verdict
    mark = f'<sup title="{change.note}">&dagger;</sup>' if change.note else ""
    text = f"{change.value:+.4f}{mark} <small>[{change.low:+.4f}, {change.high:+.4f}]</small>"
    return (text, change.value), (_p_value(one.p), one.p), verdict


def _logloss(one: Against | None) -> tuple[Cell, Cell]:
    change = None if one is None else one.compared.logloss
    if one is None or change is None or one.logloss_p is None:
        return _NONE, _NONE
    text = f"{change.value:+.4f} <small>[{change.low:+.4f}, {change.high:+.4f}]</small>"
    return (text, change.value), (_p_value(one.logloss_p), one.logloss_p)


def _p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-99 else "&lt;1e-99"


def _megabytes(size: int) -> str:
    return f'<span title="{size:,} bytes">{size / 1e6:,.3f}</span>'
