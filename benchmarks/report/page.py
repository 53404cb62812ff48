"""The HTML page: one file, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from featemb.benchmarks.report.aggregate import Row, asked_size
from featemb.benchmarks.report.pictures import plotly_figure

_HEAD = (
    "method", "asked", "ratio", "serving MB", "training MB", "AUC", "&plusmn;", "&Delta; to full",
    "95% interval", "p (Holm)", "verdict", "LogLoss", "gAUC", "calibration", "epochs", "step ms",
    "rows/s", "seeds", "bytes by part",
)  # fmt: skip


def page(
    title: str,
    rows: Sequence[Row],
    records: Mapping[str, Mapping[str, Any]],
    unreadable: Mapping[str, str],
) -> str:
    """Return the report as one HTML document.

    Args:
        title: heading.
        rows: what `aggregate` gives.
        records: all records, for facts and failures.
        unreadable: folders without a record, and why.
    """
    from plotly.offline import get_plotlyjs

    folder = files("featemb.benchmarks.report")
    style = (folder / "page.css").read_text(encoding="utf8")
    script = "".join((folder / name).read_text(encoding="utf8") for name in ("page.js", "table.js"))
    groups = sorted({(row.data, row.model) for row in rows})
    sections, figures = [], {}
    for number, (data, model) in enumerate(groups):
        part = [row for row in rows if (row.data, row.model) == (data, model)]
        figures[f"plot{number}"] = plotly_figure(part)
        sections.append(
            f"<section><h2>{escape(data)} &middot; {escape(model)}</h2>"
            f'<div class="plot" id="plot{number}"></div>{_table(part)}</section>'
        )
    # "</" would end the script element early, whatever a run's name holds
    figures_json = json.dumps(figures, default=_plain).replace("</", "<\\/")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><main>'
        f"<h1>{escape(title)}</h1>{_facts(records)}{''.join(sections)}"
        f"{_failures(records, unreadable)}</main>"
        f"<script>{get_plotlyjs()}</script>"
        f'<script id="figures" type="application/json">{figures_json}</script>'
        f"<script>{script}</script></body></html>"
    )


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _facts(records: Mapping[str, Mapping[str, Any]]) -> str:
    done = [record for record in records.values() if record["status"] == "ok"]
    if not done:
        return "<p>No finished run.</p>"
    created = sorted(record["created"] for record in done)
    versions = sorted(
        {f"featemb {r['versions']['featemb']}, torch {r['versions']['torch']}" for r in done}
    )
    devices = sorted(
        {str(record["device"].get("name") or record["device"]["type"]) for record in done}
    )
    data = {
        f"{r['data']['name']}: {r['data']['rows']['train']:,} / {r['data']['rows']['valid']:,} / "
        f"{r['data']['rows']['test']:,} rows, {r['data']['features']} features, "
        f"{r['data']['values']:,} ids"
        for r in done
    }
    facts = [
        f"{len(done)} finished runs of {len(records)}, {created[0][:10]} to {created[-1][:10]}",
        "; ".join(versions),
        "; ".join(devices),
        *sorted(data),
    ]
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f"<ul>{items}</ul><p>Bytes are those of all embedding tables of a model as they are "
        "served, first-order weights included. Ratio: bytes of the plain fp32 tables / serving "
        "bytes. MB = 10<sup>6</sup> bytes. Metrics are of the frozen network on the test rows.</p>"
    )


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    body = "".join(_table_row(row) for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _table_row(row: Row) -> str:
    reach = (row.auc.high - row.auc.low) / 2
    change = row.difference
    parts = ", ".join(f"{part} {size:,}" for part, size in row.parts.items())
    cells: list[tuple[str, float | str]] = [
        (escape(row.method), row.method),
        (escape(row.asked), row.ratio),
        (f"{row.ratio:.2f}x", row.ratio),
        (_megabytes(row.serving), row.serving),
        (_megabytes(row.training), row.training),
        (f"{row.auc.value:.4f}", row.auc.value),
        (f"{reach:.4f}", reach),
        (f"{change.value:+.4f}", change.value) if change else ("", 0.0),
        (f"[{change.low:+.4f}, {change.high:+.4f}]", change.low) if change else ("", 0.0),
        (_p_value(row.p), row.p) if row.p is not None else ("", 1.0),
        (f'<span class="{row.verdict.split()[0]}">{row.verdict}</span>', row.verdict),
        (f"{row.logloss.value:.4f}", row.logloss.value),
        (f"{row.gauc.value:.4f}", row.gauc.value) if row.gauc is not None else ("", 0.0),
        (f"{row.calibration:.3f}", row.calibration),
        (f"{row.epochs:.1f}", row.epochs),
        (f"{row.step_ms:.2f}", row.step_ms),
        (f"{row.rows_per_second:,.0f}", row.rows_per_second),
        (str(row.seeds), row.seeds),
        (escape(parts), parts),
    ]
    return "<tr>" + "".join(_cell(text, key) for text, key in cells) + "</tr>"


def _cell(text: str, key: float | str) -> str:
    return f'<td data-key="{escape(str(key), quote=True)}">{text}</td>'


def _p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-99 else "&lt;1e-99"


def _megabytes(size: int) -> str:
    return f'<span title="{size:,} bytes">{size / 1e6:,.3f}</span>'


def _failures(records: Mapping[str, Mapping[str, Any]], unreadable: Mapping[str, str]) -> str:
    failed = [record for record in records.values() if record["status"] != "ok"]
    if not failed and not unreadable:
        return ""
    items = [
        f"<tr><td>{escape(r['config']['data'])}</td><td>{escape(r['config']['model'])}</td>"
        f"<td>{escape(r['config']['method'])}</td><td>{escape(asked_size(r['config']))}</td>"
        f"<td>{escape(r['error']['type'])}: {escape(r['error']['message'])}</td></tr>"
        for r in failed
    ]
    items += [
        f'<tr><td colspan="4">{escape(name)}</td><td>{escape(why)}</td></tr>'
        for name, why in unreadable.items()
    ]
    return (
        '<section><h2>Runs without a result</h2><div class="scroll"><table><thead><tr><th>data</th>'
        "<th>model</th><th>method</th><th>asked</th><th>error</th></tr></thead>"
        f"<tbody>{''.join(items)}</tbody></table></div></section>"
    )
