"""``featemb methods`` and ``featemb models``: what there is to choose from."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("methods")(list_methods)
    app.command("models")(list_models)


def list_methods(
    settings: bool = typer.Option(False, "--settings", help="Show each method's settings too."),
) -> None:
    """List the embedding methods and the codecs of their frozen rows."""
    from rich.console import Console

    from featemb.config import names

    console = Console()
    for kind in ("method", "codec"):
        console.print(_table(kind, names(kind), settings))


def list_models(
    settings: bool = typer.Option(False, "--settings", help="Show each model's settings too."),
) -> None:
    """List the CTR models."""
    from rich.console import Console
    from rich.table import Table

    from featemb import models

    table = Table("model", "what it is", "paper", *(["settings"] if settings else []))
    for name in models.names():
        model = models.find(name)
        defaults = ", ".join(f"{k}={v}" for k, v in models.config_fields(name).items())
        table.add_row(name, model.summary, model.paper, *([defaults] if settings else []))
    Console().print(table)


def _table(kind: str, names: list[str], settings: bool) -> object:
    from rich.table import Table

    from featemb.config import find

    table = Table(kind, "what it is", "paper", *(["settings"] if settings else []))
    for name in names:
        config = find(name)
        first_line = (config.__doc__ or "").strip().splitlines()[0]
        row = [name, getattr(config, "summary", first_line), getattr(config, "paper", "")]
        if settings:
            defaults = config()
            row.append(", ".join(f"{one}={getattr(defaults, one)}" for one in config.field_names()))
        table.add_row(*row)
    return table
