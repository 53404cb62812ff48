"""A comparison of selected runs for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from featemb.benchmarks.paired import Estimate
from featemb.benchmarks.selecting import Selection
from featemb.benchmarks.summary import megabytes
from featemb.benchmarks.versus import METRICS, Versus, metrics_of, p_text


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def runs_table(selections: Sequence[Selection]) -> Table:
    """Return what each of the selections costs and scores, with 95% intervals."""
    table = _table("runs", "seeds", "MB", "bytes", "ratio", *METRICS.values())
    for one in selections:
        records = list(one.runs.values())
        serving = max(record["bytes"]["serving"] for record in records)
        table.add_row(
            one.label,
            ", ".join(str(seed) for seed in one.runs),
            megabytes(serving),
            f"{serving:,}",
            f"{min(record['bytes']['ratio'] for record in records):.1f}",
            *(_interval(value) for value in metrics_of(one).values()),
        )
    return table


def _interval(value: Estimate | None) -> str:
    return "-" if value is None else f"{value.value:.5f} [{value.low:.5f}, {value.high:.5f}]"


def pairs_table(found: Sequence[Versus]) -> Table:
    """Return the differences of all pairs."""
    adjusted = ("p, Holm",) if len(found) > 1 else ()
    columns = ("metric", "difference", "95% interval", "p", *adjusted, "80% power at", "seeds")
    table = _table("first - second", *columns)
    for one in found:
        label = f"{one.first} - {one.second}"
        for name, title in METRICS.items():
            value: Estimate | None = getattr(one.compared, name)
            if value is None:
                continue
            holm = (p_text(one.p[name]).removeprefix("= "),) if adjusted else ()
            table.add_row(
                *(label, title, f"{value.value:+.5f}", f"[{value.low:+.5f}, {value.high:+.5f}]"),
                *(
                    p_text(value.p).removeprefix("= "),
                    *holm,
                    f"{value.detectable:.5f}",
                    str(value.seeds),
                ),
            )
            label = ""
    return table


def sentences(found: Sequence[Versus]) -> list[str]:
    """Return what the comparisons say, a line each."""
    lines = []
    for one in found:
        head = f"{one.first} and {one.second}: " if len(found) > 1 else ""
        lines += [head + one.verdict(name) for name in ("auc", "logloss")]
    notes = dict.fromkeys(_note(one) for one in found)
    return lines + [note for note in notes if note]


def _note(one: Versus) -> str:
    """Return what these intervals leave out."""
    if any(first != second for first, second in one.seeds):
        return "The runs have different seeds, and training noise is not counted."
    count = len(one.seeds)
    if count == 1:
        return (
            "One seed: training noise not counted. This says whether these trained networks "
            "differ, not whether the methods do."
        )
    if count == 2:
        return "Two seeds tell little of training noise: the intervals are wide for it."
    return ""


def as_json(selections: Sequence[Selection], found: Sequence[Versus]) -> dict[str, Any]:
    """Return the comparison as JSON-able values."""
    runs = [
        {
            "label": one.label,
            "run_ids": [record["run_id"] for record in one.runs.values()],
            "seeds": list(one.runs),
            "serving": max(record["bytes"]["serving"] for record in one.runs.values()),
            "metrics": {name: _dict(value) for name, value in metrics_of(one).items()},
        }
        for one in selections
    ]
    pairs = [
        {"first": one.first, "second": one.second, "seeds": [list(seeds) for seeds in one.seeds]}
        | {name: _pair(one, name) for name in METRICS}
        for one in found
    ]
    return {"runs": runs, "pairs": pairs}


def _dict(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else value.to_dict()


def _pair(one: Versus, name: str) -> dict[str, Any] | None:
    value: Estimate | None = getattr(one.compared, name)
    if value is None:
        return None
    verdict = {"p_holm": one.p[name], "detectable": value.detectable, "verdict": one.verdict(name)}
    return value.to_dict() | verdict
