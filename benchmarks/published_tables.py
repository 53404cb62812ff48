"""Tables of results in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from featemb.benchmarks.published import Cost, Published
from featemb.benchmarks.report import Row
from featemb.benchmarks.report.aggregate import Against
from featemb.errors import ConfigError

_HEAD = ("method", "bytes", "ratio", "test AUC", "to full", "p", "to hash", "p", "training bytes")
_COSTS = ("step", "lookup")
_SEVERAL = 3  # sizes that make a curve


def table(found: Published, data: str, model: str, size: str) -> str:
    """Return every method at a size, best first, and beneath those that cannot be had.

    Raises:
        ConfigError: there is no such run.
    """
    rows = found.select(data, model, size)
    if not rows:
        raise ConfigError(f"no runs of {model} on {data} at {size}")
    costs = {method: cost for (*kind, method), cost in found.costs.items() if kind == [data, model]}
    rows = sorted(rows, key=lambda row: (not row.is_full, -row.auc.value))
    lines = [_line((*_HEAD, *(_COSTS if costs else ())))]
    lines.append(_line("---" for _ in range(len(_HEAD) + len(_COSTS) * bool(costs))))
    lines += [_line((*cells(row), *_cost(row, costs))) for row in rows]
    return "\n".join(lines + _refused(found, data, model, size)) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row; a method that shows no loss to the full table is bold."""
    name = _marked(row, f"`{row.method}`")
    reach = (row.auc.high - row.auc.low) / 2
    return (
        name if row.seeds > 1 else f"{name} †",
        f"{row.serving:,}",
        f"{row.ratio:.1f}x",
        f"{row.auc.value:.4f} ± {reach:.4f}",
        *against(row.to_full),
        *against(row.to_hash),
        f"{row.training:,}",
    )


def against(found: Against | None) -> tuple[str, str]:
    """Return a paired difference of AUC with half its 95% interval, and its p-value."""
    if found is None or found.compared.auc is None:
        return "", ""
    one = found.compared.auc
    return f"{one.value:+.4f} ± {(one.high - one.low) / 2:.4f}", p_value(found.p)


def p_value(p: float | None) -> str:
    """Return a p-value to three digits."""
    if p is None:
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def _cost(row: Row, costs: dict[str, Cost]) -> tuple[str, ...]:
    if not costs:
        return ()
    cost = Cost(1.0, 1.0) if row.is_full else costs.get(row.method)
    return ("", "") if cost is None else (times(cost.step), times(cost.lookup))


def times(ratio: float) -> str:
    """Return a ratio of times to two digits."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def _refused(found: Published, data: str, model: str, size: str) -> list[str]:
    reasons = [
        why for kind, why in found.failed.items() if kind[:2] + kind[3:] == (data, model, size)
    ]
    bullets = [f"- {why}" for why in dict.fromkeys(reasons)]
    return ["", "Not to be had:", "", *bullets] if bullets else []


def choices(found: Published, data: str) -> str:
    """Return what equal tuning tried and chose on a data set.

    Raises:
        ConfigError: nothing was tuned on it.
    """
    entries = [one for one in found.choices if one["data"] == data]
    if not entries:
        raise ConfigError(f"nothing was tuned on {data!r}")
    tried = list(dict.fromkeys(str(trial["values"]) for one in entries for trial in one["trials"]))
    names = {str(t["values"]): t["values"] for one in entries for t in one["trials"]}
    heads = [", ".join(f"{k} {v:g}" for k, v in names[text].items()) for text in tried]
    lines = [_line(("method", "size", *heads)), _line("---" for _ in range(2 + len(heads)))]
    for entry in entries:
        size = "own" if entry["ratio"] is None else f"{entry['ratio']:g}x"
        marked = [_score(trial, entry["chosen"]) for trial in entry["trials"]]
        lines.append(_line((f"`{entry['method']}`", size, *marked)))
    return "\n".join(lines) + "\n"


def _score(trial: dict[str, object], chosen: object) -> str:
    auc = trial["valid_auc"]
    if not isinstance(auc, float):
        return "failed"
    return f"**{auc:.4f}**" if trial["values"] == chosen else f"{auc:.4f}"


def curves(found: Published, data: str, model: str) -> str:
    """Return the paired differences to the full table over sizes, of methods measured at several.

    Raises:
        ConfigError: no method has runs at three sizes or more.
    """
    rows = [row for row in found.select(data, model) if row.asked != "-" and not row.is_full]
    by_method: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.asked] = row
    several = {name: one for name, one in by_method.items() if len(one) >= _SEVERAL}
    if not several:
        raise ConfigError(f"no method has {_SEVERAL} sizes of {model} on {data}")
    sizes = sorted({size for one in several.values() for size in one}, key=_number)
    best = {name: fmean(row.auc.value for row in one.values()) for name, one in several.items()}
    methods = sorted(several, key=lambda name: -best[name])
    lines = [_line(("method", *sizes)), _line("---" for _ in range(1 + len(sizes)))]
    for name in methods:
        lines.append(_line((f"`{name}`", *(_change(several[name].get(size)) for size in sizes))))
    return "\n".join(lines) + "\n"


def _number(size: str) -> float:
    return float(size.rstrip("x"))


def _change(row: Row | None) -> str:
    """Return a difference to full with half its interval; bold where no loss is shown."""
    if row is None:
        return ""
    text, _ = against(row.to_full)
    text = (text or f"AUC {row.auc.value:.4f}") + ("" if row.seeds > 1 else " †")
    return _marked(row, text)


def _marked(row: Row, text: str) -> str:
    """Make a text bold where no loss to the full table is shown: the plain interval reaches zero.

    An adjusted p would spare a loss the more, the more methods are compared.
    """
    change = None if row.to_full is None else row.to_full.compared.auc
    lossless = row.is_full if change is None else change.high >= 0
    return f"**{text}**" if lossless else text


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"
