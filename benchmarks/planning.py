"""A plan for people and for programs: tables for the terminal, JSON, CSV and HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from featemb.budget import parse_bytes
from featemb.errors import ConfigError
from featemb.files import replacing

if TYPE_CHECKING:
    import pandas as pd

    from featemb.placement import Placement
    from featemb.schema import Schema

_EVIDENCE = ("auc_loss", "loss_low", "loss_high", "basis", "evidence")
_SEVERAL = (
    "Judged by several data sets and models: mean loss, widest interval, weakest word. "
    "--out writes what each says; --evidence-data and --evidence-model judge by one."
)
_INTEGERS = ("serving_bytes", "training_bytes", "floor_bytes", "gpu_bytes", "host_bytes")


def title(schema: Schema, dim: int, ratio: float | None, budget: int | str | None) -> str:
    """Say what was asked."""
    wanted = "no size asked"
    if ratio is not None:
        wanted = f"{ratio:g}x smaller"
    if budget is not None:
        wanted = f"within {_bytes(parse_bytes(budget))}"
    size = "unbounded ids"
    if schema.bounded:
        full = _bytes(schema.full_bytes(dim))
        size = f"{sum(schema.cardinalities):,} ids of {dim} numbers, {full}"
    return f"{schema.num_features} features, {size}; {wanted}"


def sort(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a plan without evidence: what fits first, in the order of the methods."""
    return frame.sort_values("fits", ascending=False, kind="stable").reset_index(drop=True)


def table(frame: pd.DataFrame, heading: str) -> Table:
    """Return the rows that fit, as a table for the terminal."""
    made = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("method", overflow="fold")
    for name in ("serving", "ratio", "training"):
        made.add_column(name, justify="right", no_wrap=True)
    known, placed = "auc_loss" in frame, "placed" in frame
    if placed:
        made.add_column("where", overflow="fold")
        for name in ("a GPU", "host"):
            made.add_column(name, justify="right", no_wrap=True)
    if known:
        made.add_column("AUC loss", justify="right", no_wrap=True)
        made.add_column("95%", no_wrap=True)
        made.add_column("how known", overflow="fold")
    fitting: list[Any] = list(frame[frame.fits].itertuples())
    if known and any(_judges(row) > 1 for row in fitting):
        made.caption = _SEVERAL
        made.caption_justify = "left"
    for row in fitting:
        cells = [
            str(row.spec),
            _bytes(row.serving_bytes),
            "" if _missing(row.ratio) else f"{row.ratio:.1f}x",
            _bytes(row.training_bytes),
        ]
        made.add_row(
            *cells, *(_places(row) if placed else ()), *(_expectation(row) if known else ())
        )
    return made


def _places(row: Any) -> tuple[str, str, str]:
    return str(row.placed), _bytes(row.gpu_bytes), _bytes(row.host_bytes)


def places(found: Placement) -> Table:
    """Return where a method's tables go: a line a table and device."""
    made = Table(
        title=f"placed by {found.placer}: {found.summary}",
        caption=found.note or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("table", "device", "how"):
        made.add_column(name, overflow="fold")
    for name in ("rows", "first row", "bytes"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in found.shards:
        numbers = (f"{one.rows:,}", f"{one.first:,}", _bytes(one.size))
        made.add_row(one.table, one.device, one.how, *numbers)
    return made


def _expectation(row: Any) -> tuple[str, str, str]:
    if _missing(row.auc_loss):
        return "", "", "no evidence"
    reach = "" if _missing(row.loss_low) else f"[{row.loss_low:+.4f}, {row.loss_high:+.4f}]"
    guess = "~" if row.basis == "extrapolated" else ""
    judges = _judges(row)
    how = row.evidence if judges == 1 else f"weakest of {judges}"
    return f"{guess}{row.auc_loss:+.4f}", reach, f"{row.basis}: {how}"


def _judges(row: Any) -> int:
    """Return how many data sets and models a row is judged by."""
    from featemb.benchmarks.evidence import BETWEEN  # imported already: it has judged

    return int(row.evidence.count(BETWEEN)) + 1


def refused(frame: pd.DataFrame) -> list[str]:
    """Return a line for each method that does not fit: its floor, or why it cannot be had."""
    lines = []
    left: list[Any] = list(frame[~frame.fits].itertuples())
    for row in left:
        floor = row.floor_bytes
        why = row.reason if _missing(floor) else f"needs at least {_bytes(floor)}"
        lines.append(f"{row.method}: {why}")
    return lines


def check_form(path: Path) -> None:
    """Refuse a file whose ending names no form.

    Raises:
        ConfigError: names the allowed ones.
    """
    if path.suffix not in _FORMS:
        raise ConfigError(f"cannot write a plan to {str(path)!r}; Allowed: {', '.join(_FORMS)}")


def write(frame: pd.DataFrame, path: Path, heading: str) -> None:
    """Write a plan atomically: ``.json`` (exact integers), ``.csv`` or ``.html`` (one file).

    Raises:
        ConfigError: the ending names none of these.
    """
    check_form(path)
    text = _FORMS[path.suffix](frame, heading)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON-able values: bytes are integers, what is not known is None."""
    found = []
    for row in frame.to_dict("records"):
        entry: dict[str, Any] = {
            str(key): None if _missing(value) else value for key, value in row.items()
        }
        entry |= {name: int(entry[name]) for name in _INTEGERS if entry.get(name) is not None}
        found.append(entry | {"fits": bool(row["fits"])})
    return found


def _json(frame: pd.DataFrame, heading: str) -> str:
    return json.dumps({"plan": heading, "rows": rows(frame)}, indent=1, allow_nan=False) + "\n"


def _csv(frame: pd.DataFrame, _: str) -> str:
    import pandas as pd

    flat = [
        {key: json.dumps(value) if isinstance(value, dict) else value for key, value in row.items()}
        for row in rows(frame)
    ]
    exact = pd.DataFrame(flat, columns=list(frame.columns), dtype=object)
    text: str = exact.to_csv(index=False)
    return text


def _html(frame: pd.DataFrame, heading: str) -> str:
    folder = files("featemb.benchmarks.report")
    style, script = (
        (folder / name).read_text(encoding="utf8") for name in ("page.css", "table.js")
    )
    known = [name for name in _EVIDENCE if name in frame]
    names = [*(name for name in frame.columns if name not in known), *known]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(_cell(row[name]) for name in names) + "</tr>" for row in rows(frame)
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(heading)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><main>'
        f"<h1>Plan</h1><p>{escape(heading)}. Bytes are exact: the layers were built without "
        "memory by the code that trains them. MB = 10<sup>6</sup> bytes.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div></main><script>{script}</script></body></html>"
    )


def _cell(value: Any) -> str:
    text, key = str(value), str(value)
    if value is None:
        text, key = "", ""
    elif isinstance(value, dict):
        text = ", ".join(f"{part} {size:,}" for part, size in value.items())
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    return f'<td data-key="{escape(key, quote=True)}">{escape(text)}</td>'


_FORMS: dict[str, Callable[[pd.DataFrame, str], str]] = {
    ".json": _json,
    ".csv": _csv,
    ".html": _html,
}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bytes(size: float) -> str:
    """Bytes in decimal units, three digits or more."""
    for unit, power in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= power:
            value = size / power
            return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{int(size)} B"
