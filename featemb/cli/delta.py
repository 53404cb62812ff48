"""``featemb delta`` and ``featemb apply``: a served package brought up to date by what changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featemb.cli import settings

if TYPE_CHECKING:
    from rich.table import Table

    from featemb.delta import Delta

_PACKAGE = "package, or folder of a run that kept its model"


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("delta")(delta)
    app.command("apply")(apply)


def delta(
    old: Annotated[Path, typer.Argument(help=f"what is in service: a {_PACKAGE}")],
    new: Annotated[Path, typer.Argument(help=f"what is to take its place: a {_PACKAGE}")],
    out: Annotated[Path, typer.Option(help="file of the delta")],
) -> None:
    """Write what changed between two packages of one schema, for `featemb apply`."""
    import featemb
    from featemb.benchmarks.exporting import model_file

    made = featemb.delta(model_file(old), model_file(new), out)
    if made.changed:
        settings.console().print(_table(made))
    typer.echo(
        f"{out}: {made.file_bytes:,} bytes, {made.file_bytes / made.package_bytes:.2%} "
        f"of the package; from {made.base} to {made.result}"
    )


def apply(
    package: Annotated[Path, typer.Argument(help=_PACKAGE)],
    delta: Annotated[Path, typer.Argument(help="delta from this package")],
    out: Annotated[
        Path | None, typer.Option(help="write the result here, and leave the package alone")
    ] = None,
) -> None:
    """Bring a package up to date: at once, checked, or not at all."""
    import featemb
    from featemb.benchmarks.exporting import model_file

    path = model_file(package)
    done = featemb.apply_delta(path, delta, out)
    typer.echo(f"{out or path}: {'brought up to date' if done else 'up to date already'}")


def _table(made: Delta) -> Table:
    from rich.table import Table

    table = Table(title="what changed")
    table.add_column("tensor", overflow="fold")
    for name in ("bytes in the delta", "bytes", "share"):
        table.add_column(name, justify="right")
    for name, (part, whole) in made.changed.items():
        table.add_row(name, f"{part:,}", f"{whole:,}", f"{part / max(1, whole):.2%}")
    return table
