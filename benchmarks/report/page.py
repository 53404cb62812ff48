"""The HTML page: one file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from featemb.benchmarks.groups import asked_size
from featemb.benchmarks.report.aggregate import Row
from featemb.benchmarks.report.looks import TITLES, Look
from featemb.benchmarks.report.payload import payload, to_json
from featemb.benchmarks.report.table import table

# The scripts share one scope, in this order.
_SCRIPTS = ("table.js", "state.js", "plots.js", "tables.js", "details.js", "page.js")
Records = Mapping[str, Mapping[str, Any]]


def page(
    title: str,
    rows: Sequence[Row],
    records: Records,
    unreadable: Mapping[str, str],
    looks: Mapping[str, Look],
    folder: str | Path,
) -> str:
    """Return the report as one HTML document.

    Args:
        title: heading.
        rows: what `aggregate` gives.
        records: all records, for facts and failures.
        unreadable: folders without a record, and why.
        looks: by method.
        folder: of the runs, for their curves.
    """
    from plotly.offline import get_plotlyjs

    here = files("featemb.benchmarks.report")
    style = (here / "page.css").read_text(encoding="utf8")
    scripts = "\n".join((here / name).read_text(encoding="utf8") for name in _SCRIPTS)
    groups = sorted({(row.data, row.model) for row in rows})
    sections = [
        _section(number, data, model, [row for row in rows if (row.data, row.model) == group])
        for number, group in enumerate(groups)
        for data, model in [group]
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f"<header><h1>{escape(title)}</h1>"
        '<button id="theme" title="light, dark or as the system">Theme</button></header>'
        f"{_filters(rows, looks)}<div id='body'><main>{_facts(records)}{_tests(rows)}"
        f"{''.join(sections)}{_failures(records, unreadable)}</main>"
        '<aside id="details" hidden tabindex="-1" aria-label="selected runs"></aside></div>'
        f"<script>{get_plotlyjs()}</script>"
        '<script id="payload" type="application/json">'
        f"{to_json(payload(rows, records, looks, folder))}</script>"
        f'<script>"use strict";\n{scripts}</script></body></html>'
    )


def _section(number: int, data: str, model: str, rows: Sequence[Row]) -> str:
    return (
        f'<section data-group="{number}"><h2>{escape(data)} &middot; {escape(model)} '
        f'<small class="count"></small></h2><div class="plot" id="plot{number}"></div>'
        f"{table(rows)}</section>"
    )


def _filters(rows: Sequence[Row], looks: Mapping[str, Look]) -> str:
    """Return the form that the script filters by."""
    families = {
        family: [m for m, look in looks.items() if look.family == family] for family in TITLES
    }
    methods = "".join(
        f"<fieldset><legend>{escape(family)} <small>{escape(TITLES[family])}</small> "
        f'<button type="button" data-family="{family}">none</button></legend>'
        f"{''.join(_box('method', m) for m in members)}</fieldset>"
        for family, members in families.items()
        if members
    )
    return (
        '<form id="filters" aria-label="filters" autocomplete="off">'
        '<label>Search <input type="search" name="q" placeholder="method, size, setting"></label>'
        f"{_menu('Data', 'data', sorted({row.data for row in rows}))}"
        f"{_menu('Models', 'model', sorted({row.model for row in rows}))}"
        f"<details class='menu'><summary>Methods</summary><div>{methods}</div></details>"
        '<label>Ratio <input type="number" name="low" min="0" step="any" placeholder="from">'
        '</label><label>to <input type="number" name="high" min="0" step="any" placeholder="to">'
        f"</label>{_SHOWN}{_AXIS}"
        '<label class="check"><input type="checkbox" name="best"> Pareto-best alone</label>'
        '<button type="reset">Reset</button><output id="count" role="status"></output></form>'
    )


_SHOWN = (
    '<label>Test <select name="test"><option value="">any</option>'
    '<option value="full:better">better than full</option>'
    '<option value="full:worse">worse than full</option>'
    '<option value="full:no">no difference to full shown</option>'
    '<option value="hash:better">better than hash</option>'
    '<option value="hash:worse">worse than hash</option>'
    '<option value="hash:no">no difference to hash shown</option></select></label>'
)
_AXIS = (
    '<label>Plot <select name="y"><option value="">AUC</option>'
    '<option value="to_full">AUC to full, paired</option>'
    '<option value="to_hash">AUC to hash, paired</option>'
    '<option value="logloss">LogLoss</option><option value="gauc">gAUC</option></select></label>'
)


def _menu(title: str, name: str, values: Sequence[str]) -> str:
    boxes = "".join(_box(name, value) for value in values)
    return f"<details class='menu'><summary>{title}</summary><div>{boxes}</div></details>"


def _box(name: str, value: str) -> str:
    text = escape(value, quote=True)
    return f'<label><input type="checkbox" checked name="{name}" value="{text}"> {text}</label>'


def _facts(records: Records) -> str:
    done = [record for record in records.values() if record["status"] == "ok"]
    if not done:
        return "<p>No finished run.</p>"
    created = sorted(record["created"] for record in done)
    versions = {f"featemb {r['versions']['featemb']}, torch {r['versions']['torch']}" for r in done}
    devices = {str(record["device"].get("name") or record["device"]["type"]) for record in done}
    data = {
        f"{r['data']['name']}: {r['data']['rows']['train']:,} / {r['data']['rows']['valid']:,} / "
        f"{r['data']['rows']['test']:,} rows, {r['data']['features']} features, "
        f"{r['data']['values']:,} ids"
        for r in done
    }
    facts = [
        f"{len(done)} finished runs of {len(records)}, {created[0][:10]} to {created[-1][:10]}",
        "; ".join(sorted(versions)),
        "; ".join(sorted(devices)),
        *sorted(data),
    ]
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f"<details class='facts'><summary>{escape(facts[0])}</summary><ul>{items}</ul>"
        "<p>Bytes are those of all embedding tables of a model as they are "
        "served, first-order weights included. Ratio: bytes of the plain fp32 tables / serving "
        "bytes. MB = 10<sup>6</sup> bytes. Metrics are of the frozen network on the test rows. "
        "Intervals are of 95%. Differences are paired by test row and seed; their intervals count "
        "test rows and training. p-values are adjusted by Holm's rule within data set, model and "
        "reference.</p></details>"
    )


def _tests(rows: Sequence[Row]) -> str:
    """Return what the paired tests leave out."""
    notes = []
    estimates = [
        one.compared.auc
        for row in rows
        for one in (row.to_full, row.to_hash)
        if one is not None and one.compared.auc is not None
    ]
    full = {(row.data, row.model) for row in rows if row.is_full}
    missing = sum(
        not row.is_full and row.to_full is None and (row.data, row.model) in full for row in rows
    )
    if missing:
        notes.append(
            f"Paired tests are not available for {missing} of {len(rows)} rows: they need "
            "predictions, or the paired.json that <code>featemb compare --all RUNS</code> writes, "
            "of runs on the rows and seeds of the full table."
        )
    if any(one.seeds == 1 for one in estimates):
        notes.append("&dagger; one seed: training noise not counted.")
    return "".join(f"<p class='note'>{note}</p>" for note in notes)


def _failures(records: Records, unreadable: Mapping[str, str]) -> str:
    failed = [record for record in records.values() if record["status"] != "ok"]
    if not failed and not unreadable:
        return ""
    alike: dict[tuple[str, ...], list[int]] = {}  # the seeds of a run mostly fail as one
    for record in failed:
        config, error = record["config"], record["error"]
        named = (config["data"], config["model"], config["method"], asked_size(config))
        alike.setdefault((*named, f"{error['type']}: {error['message']}"), []).append(
            config["seed"]
        )
    items = [
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in (*named, _list(seeds), why))}</tr>"
        for (*named, why), seeds in alike.items()
    ]
    items += [
        f'<tr><td colspan="5">{escape(name)}</td><td>{escape(why)}</td></tr>'
        for name, why in unreadable.items()
    ]
    return (
        "<section id='failed'><h2>Runs without a result</h2><div class='scroll'><table><thead><tr>"
        "<th>data</th><th>model</th><th>method</th><th>asked</th><th>seeds</th><th>error</th></tr></thead>"
        f"<tbody>{''.join(items)}</tbody></table></div></section>"
    )


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))
