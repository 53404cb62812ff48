"""``featemb report``: run folders in, one HTML file and pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("report")(report)


def report(
    runs: Annotated[Path, typer.Argument(help="folder of the runs")],
    out: Annotated[Path | None, typer.Option(help="folder of the report; default: RUNS")] = None,
    title: Annotated[str, typer.Option(help="heading of the page")] = "Accuracy against memory",
) -> None:
    """Write report.html (one file, works offline) and a PNG a data set and model."""
    from featemb.benchmarks.report import write_report

    for path in write_report(runs, out, title):
        typer.echo(path)
