"""``featemb compare``: finished runs against each other, on the same test rows."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

_LOG_WIDTH = 160


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(compare)


def compare(
    what: list[str] | None = typer.Argument(
        None, help="Two or more: folders of runs, or METHOD@SIZE of --runs, as 'hash@10x'."
    ),
    runs: Path | None = typer.Option(None, help="Folder that METHOD@SIZE and run ids are of."),
    data: str | None = typer.Option(None, help="Runs of this data set alone."),
    model: str | None = typer.Option(None, help="Runs of this model alone."),
    seed: list[int] | None = typer.Option(None, help="Runs of this seed alone (repeatable)."),
    where: list[str] | None = typer.Option(
        None, help="Runs with this setting alone, as lr=0.005 (repeatable)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
    runs_of: Path | None = typer.Option(
        None,
        "--all",
        metavar="RUNS",
        help="Compare everything in a folder with full and hash, and write its paired.json.",
    ),
) -> None:
    """Compare finished runs, paired by test row and seed; all pairs of more than two.

    METHOD@SIZE takes the seeds together. SIZE is a ratio (10x), bytes (2MB) or - (the method's
    own size); it may be left out where there is one.
    """
    if runs_of is not None:
        if what or runs:
            raise ConfigError("--all takes a folder and compares all of it: name no runs beside it")
        _store(runs_of)
        return
    from featemb.benchmarks.selecting import Filters, Selector, read_settings
    from featemb.benchmarks.versus import versus

    filters = Filters(data, model, tuple(seed or ()), read_settings(where or ()))
    selector = Selector(runs, filters)
    selections = [selector.select(text) for text in what or ()]
    found = versus(selections)
    from featemb.benchmarks import versus_tables as tables

    if as_json:
        typer.echo(json.dumps(tables.as_json(selections, found), indent=1, allow_nan=False))
        return
    console = settings.console(_LOG_WIDTH)
    console.print(tables.runs_table(selections), tables.pairs_table(found))
    for line in tables.sentences(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _store(folder: Path) -> None:
    from featemb.benchmarks import stored_pairs

    path, compared = stored_pairs.store(folder)
    typer.echo(f"{path}: {len(compared)} comparisons")
