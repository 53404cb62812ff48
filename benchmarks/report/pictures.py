"""The Pareto picture of AUC against serving bytes as PNG, for a few methods or for forty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featemb.benchmarks.records import slug
from featemb.benchmarks.report.aggregate import Row
from featemb.benchmarks.report.looks import Look
from featemb.benchmarks.report.pareto import front
from featemb.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 8  # methods that a legend and a colour each keep apart
_GREY = "#c3c7cf"


def lines_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the points of each method by size, the full table apart."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_full:
            methods.setdefault(row.label, []).append(row)
    return {m: sorted(points, key=lambda row: row.serving) for m, points in sorted(methods.items())}


def full_of(rows: Sequence[Row]) -> Row | None:
    """Return the full table's row."""
    return next((row for row in rows if row.is_full), None)


def pictures(rows: Sequence[Row], folder: Path, looks: Mapping[str, Look]) -> list[Path]:
    """Draw every data set and model into a folder; return the files."""
    written = []
    for data, model in sorted({(row.data, row.model) for row in rows}):
        part = [row for row in rows if (row.data, row.model) == (data, model)]
        written.append(folder / f"{slug(data)}-{slug(model)}.png")
        png(part, f"{data}, {model}", written[-1], looks)
    return written


def png(rows: Sequence[Row], title: str, path: Path, looks: Mapping[str, Look]) -> None:
    """Draw one data set and model.

    Few methods have a colour and a place in the legend each. Of many, those on the Pareto front are
    drawn in colour with their names beside their best points; the others are grey.

    Args:
        rows: of one data set and model.
        title: heading.
        path: file to write.
        looks: by method.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 11, "svg.hashsalt": "featemb"}):
        figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
        axes = figure.add_subplot()
        lines = lines_of(rows)
        few = len(lines) <= FEW
        _full(axes, full_of(rows))
        best = front(rows)
        named = {row.label for row in best}
        for label, points in lines.items():
            look = looks[points[0].method]
            if few or label in named:
                _line(axes, points, look.light, look.marker, label)
            else:
                _line(axes, points, _GREY, look.marker, None)
        _scales(axes, title)
        if few:
            figure.legend(loc="outside right upper", frameon=False)
        else:
            shades = {row.label: looks[row.method].light for row in best}
            _names(axes, best, shades | {row.label: "#333333" for row in best if row.is_full})
        with replacing(path) as part:
            figure.savefig(part, format="png", metadata={"Software": None})


def _full(axes: Axes, full: Row | None) -> None:
    if full is None:
        return
    axes.axhspan(full.auc.low, full.auc.high, color="#888888", alpha=0.15, linewidth=0)
    axes.axhline(full.auc.value, color="#555555", linewidth=1, linestyle="--")
    axes.plot(
        full.serving / 1e6, full.auc.value, "*", color="#333333", markersize=14, zorder=4,
        label=f"full table, {full.auc.value:.4f}",
    )  # fmt: skip


def _line(axes: Axes, points: Sequence[Row], color: str, marker: str, label: str | None) -> None:
    value = [row.auc.value for row in points]
    below = [row.auc.value - row.auc.low for row in points]
    above = [row.auc.high - row.auc.value for row in points]
    axes.errorbar(
        [row.serving / 1e6 for row in points],
        value,
        [below, above],
        color=color,
        marker=marker,
        markersize=6 if label else 4,
        linewidth=1.6 if label else 0.8,
        capsize=3 if label else 0,
        elinewidth=1 if label else 0.6,
        label=label,
        zorder=3 if label else 1,
    )


def _scales(axes: Axes, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

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


def _names(axes: Axes, best: Sequence[Row], colors: Mapping[str, str]) -> None:
    """Write the methods of the front beside the picture, a thin line from name to point."""
    places: dict[str, Row] = {}
    for row in best:  # a method of several points is named once, at its largest
        places[row.label] = row
    ordered = sorted(places.values(), key=lambda row: row.auc.value)
    low, high = axes.get_ylim()
    wanted = [(row.auc.value - low) / (high - low) for row in ordered]
    for row, height in zip(ordered, spread(wanted, 0.055), strict=True):
        style: dict[str, Any] = {"arrowstyle": "-", "color": colors[row.label], "alpha": 0.6}
        axes.annotate(
            f"{row.label}, {row.ratio:.3g}x, {row.auc.value:.4f}",
            (row.serving / 1e6, row.auc.value),
            (1.02, height),
            textcoords="axes fraction",
            color=colors[row.label],
            fontsize=9,
            va="center",
            arrowprops=style | {"linewidth": 0.8, "relpos": (0, 0.5)},
        )
    axes.annotate(
        "grey: beaten in bytes and AUC", (1.02, 0), xycoords="axes fraction",
        color="#777777", fontsize=8, va="bottom",
    )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return sorted heights moved apart to a gap, within 0.05 and 1, as near as may be."""
    heights: list[float] = []
    for height in wanted:
        heights.append(max(height, heights[-1] + gap if heights else 0.05))
    top = 1.0
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], top)
        top = heights[number] - gap
    return heights
