"""``featemb compare``: finished runs against each other, on the same test rows."""

from __future__ import annotations

from pathlib import Path

import typer

from featemb.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare")(compare)


def compare(
    runs_of: Path | None = typer.Option(
        None, "--all", help="Folder: write all its comparisons with full and hash to paired.json."
    ),
) -> None:
    """Compare finished runs, paired by test row and seed."""
    from featemb.benchmarks import stored_pairs

    if runs_of is None:
        raise ConfigError("give --all FOLDER")
    path, compared = stored_pairs.store(runs_of)
    typer.echo(f"{path}: {len(compared)} comparisons")
