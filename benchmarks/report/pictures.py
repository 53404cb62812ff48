"""Pareto pictures of AUC against serving bytes: PNG by matplotlib, interactive by plotly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featemb.benchmarks.report.aggregate import Row

# Okabe and Ito's palette (2008), readable with every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")


def lines_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the points of each method by size, the full table apart, first."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_full:
            methods.setdefault(row.method, []).append(row)
    return {m: sorted(points, key=lambda row: row.serving) for m, points in sorted(methods.items())}


def full_of(rows: Sequence[Row]) -> Row | None:
    """Return the full table's row."""
    return next((row for row in rows if row.is_full), None)


def png(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw one data set and model."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "featemb"}):
        figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        full = full_of(rows)
        if full is not None:
            axes.axhspan(full.auc.low, full.auc.high, color="#888888", alpha=0.15, linewidth=0)
            axes.axhline(full.auc.value, color="#555555", linewidth=1, linestyle="--")
            axes.plot(
                full.serving / 1e6, full.auc.value, "*", color="#333333", markersize=14,
                label=f"full table, {full.auc.value:.4f}",
            )  # fmt: skip
        for number, (method, points) in enumerate(lines_of(rows).items()):
            value = [row.auc.value for row in points]
            axes.errorbar(
                [row.serving / 1e6 for row in points],
                value,
                [
                    [row.auc.value - row.auc.low for row in points],
                    [row.auc.high - row.auc.value for row in points],
                ],
                color=COLORS[number % len(COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=6,
                linewidth=1.6,
                capsize=3,
                elinewidth=1,
                label=method,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        # a short axis holds few powers of ten: label 2 and 5 between them too
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("serving bytes of all embeddings (MB = $10^6$ bytes, log scale)")
        axes.set_ylabel("test AUC, 95% interval")
        axes.set_title(title, loc="left", fontweight="bold")
        axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, metadata={"Software": None})


def plotly_figure(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the same picture as a plotly figure, JSON-able."""
    import plotly.graph_objects as go

    figure = go.Figure()
    full = full_of(rows)
    if full is not None:
        figure.add_hline(full.auc.value, line_dash="dash", line_color="#888888", line_width=1)
        figure.add_trace(_trace([full], "full table", "#888888", "star", 13))
    for number, (method, points) in enumerate(lines_of(rows).items()):
        color = COLORS[number % len(COLORS)]
        figure.add_trace(_trace(points, method, color, _SYMBOLS[number % len(_SYMBOLS)], 9))
    figure.update_xaxes(
        type="log", title="serving MB (10^6 bytes)", gridcolor="rgba(128,128,128,.25)"
    )
    figure.update_yaxes(title="test AUC", gridcolor="rgba(128,128,128,.25)", zeroline=False)
    figure.update_layout(
        height=460,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#777777", "family": "system-ui, sans-serif"},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)"},
    )
    made: dict[str, Any] = figure.to_plotly_json()
    return made


def _trace(points: Sequence[Row], name: str, color: str, symbol: str, size: int) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[row.serving / 1e6 for row in points],
        y=[row.auc.value for row in points],
        error_y={
            "array": [row.auc.high - row.auc.value for row in points],
            "arrayminus": [row.auc.value - row.auc.low for row in points],
            "thickness": 1.2,
        },
        mode="lines+markers",
        name=name,
        line={"color": color},
        marker={"symbol": symbol, "size": size},
        text=[
            f"{row.method} {row.asked}<br>{row.serving:,} bytes, {row.ratio:.1f}x<br>"
            f"AUC {row.auc.value:.4f} [{row.auc.low:.4f}, {row.auc.high:.4f}]"
            for row in points
        ],
        hoverinfo="text",
    )
