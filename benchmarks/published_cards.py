"""A method's card: what was measured of it, its floors and its costs, in Markdown."""

from __future__ import annotations

from featemb.benchmarks.grid import REFERENCE
from featemb.benchmarks.published import Published
from featemb.benchmarks.published_tables import p_value, times
from featemb.benchmarks.report import Row
from featemb.errors import ConfigError
from featemb.plan import plan
from featemb.spec import parse

_BEYOND = 1e12  # no method gets as small: the plan says its floor


def card(found: Published, method: str) -> str:
    """Return the card of a method, over all compositions of its own name that were measured.

    Raises:
        ConfigError: no run is of this method.
    """
    rows = [row for row in found.rows if _is(row, method)]
    if not rows:
        raise ConfigError(f"no run is of the method {method!r}")
    if method == REFERENCE:
        return f"- **Measured**, test AUC: {_full(rows)}\n"
    lines = [f"- **Measured**, test AUC to full: {_measured(rows)}"]
    lines += [f"- **Floor**: {_floors(found, rows)}"]
    lines += [f"- **Cost**: {cost}" for cost in [_costs(found, rows)] if cost]
    return "\n".join(lines) + "\n"


def _is(row: Row, method: str) -> bool:
    spec = parse(row.method)
    return spec.method.name == method and len(spec.methods) == 1 and "+" not in row.method


def _full(rows: list[Row]) -> str:
    return (
        "; ".join(f"{_where(row)} {row.auc.value:.4f} ({row.serving:,} bytes)" for row in rows)
        + "."
    )


def _measured(rows: list[Row]) -> str:
    """Return the curve: data sets and models apart, sizes from large to small."""
    curves: dict[tuple[str, str], list[str]] = {}
    several = len({row.method for row in rows}) > 1
    for row in sorted(rows, key=lambda row: (row.data, row.model, row.method, row.ratio)):
        name = f"`{row.method}` " if several else ""
        if row.difference is not None:
            change = f"{name}{_ratio(row.ratio)} {row.difference.value:+.4f} (p {p_value(row.p)})"
            curves.setdefault((row.data, row.model), []).append(change.replace("(p <", "(p < "))
    kinds = [
        f"{data}, {model}: {', '.join(dict.fromkeys(one))}" for (data, model), one in curves.items()
    ]
    return f"{'; '.join(kinds)}."


def _where(row: Row) -> str:
    return f"{row.data}, {row.model}:"


def _floors(found: Published, rows: list[Row]) -> str:
    """Return the smallest size of the method's first spec on each data set."""
    parts = []
    for data, schema in found.schemas.items():
        specs = sorted({row.method for row in rows if row.data == data}, key=len)
        if specs:
            dim = found.dims[data]
            planned = plan(schema, dim=dim, ratio=_BEYOND, specs=specs[:1])
            floor = int(planned["floor_bytes"].max())
            parts.append(f"{data} {floor:,} bytes ({_ratio(schema.full_bytes(dim) / floor)})")
    return ", ".join(parts) + "."


def _ratio(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def _costs(found: Published, rows: list[Row]) -> str:
    """Return times and training bytes of one measured row, as ratios to the full table."""
    full = {(row.data, row.model): row for row in found.rows if row.is_full}
    for row in rows:
        cost = found.costs.get((row.data, row.model, row.method))
        if cost is not None and (row.data, row.model) in full:
            training = row.training / full[row.data, row.model].training
            return (
                f"a training step {times(cost.step)}, a lookup {times(cost.lookup)}, training "
                f"bytes {training:.2g}x the full table's ({row.data}, {_ratio(row.ratio)})."
            )
    return ""
