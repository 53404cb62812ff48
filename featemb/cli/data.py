"""``featemb data``: list, prepare, infer, show and encode data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings, shards

if TYPE_CHECKING:
    from featemb.datasets import Dataset, Recipe

_CACHE = typer.Option(None, help="Folder of encoded data [$FEATEMB_CACHE or ~/.cache/featemb].")
_HELP = "Data sets: list them, encode them, infer the schema of a table, look at them."


def register(app: typer.Typer) -> None:
    """Add the verb and its commands."""
    verb = typer.Typer(help=_HELP, no_args_is_help=True)
    verb.command("list")(list_sets)
    verb.command("prepare")(prepare)
    verb.command("infer")(infer)
    verb.command("show")(show)
    verb.command("encode")(shards.encode)
    verb.command("check")(shards.check)
    app.add_typer(verb, name="data")


def list_sets() -> None:
    """List the registered data sets, what a row is, and their terms."""
    from rich.console import Console
    from rich.table import Table

    from featemb.datasets.registry import describe, names

    table = Table("name", "a row; its label", "terms")
    for name in names():
        table.add_row(name, *describe(name))
    Console().print(table)


def prepare(
    name: str = typer.Argument(..., help="Registered data set, or path of a table."),
    root: Path | None = settings.ROOT,
    cache: Path | None = _CACHE,
    label: str | None = settings.LABEL,
    schema: Path | None = settings.SCHEMA,
) -> None:
    """Encode a data set into the cache, unless it is there."""
    dataset = _load(name, root, cache, label, schema)
    rows = ", ".join(f"{part} {len(split):,}" for part, split in dataset.splits.items())
    typer.echo(f"{dataset.name}: {rows} rows, fingerprint {dataset.fingerprint[:16]}")


def infer(
    file: Path = typer.Argument(..., help="Parquet, CSV or TSV file."),
    label: str = typer.Option(..., help="Column of the label, 0 or 1."),
    out: Path | None = typer.Option(None, help="Write the schema to this file, to edit and reuse."),
    user: str | None = typer.Option(None, help="Column that groups rows for gAUC."),
    time: str | None = typer.Option(None, help="Split by this column, oldest rows first."),
    min_count: int = typer.Option(2, min=1, help="Rarer values of the training split are unknown."),
    separator: list[str] | None = typer.Option(
        None, help="A text column of several values, as 'genres=|' (repeatable)."
    ),
) -> None:
    """Infer the schema of a table, and say why each column is what it is."""
    from featemb import datasets

    recipe = datasets.infer(
        file,
        label,
        user=user,
        time=time,
        min_count=min_count,
        separators=_separators(separator or []),
    )
    _print_recipe(recipe)
    if out is not None:
        _write(out, recipe.to_json() + "\n")
        typer.echo(f"written to {out}; use it with --schema {out}")


def show(
    name: str = typer.Argument(..., help="Registered data set, or path of a table."),
    root: Path | None = settings.ROOT,
    cache: Path | None = _CACHE,
    label: str | None = settings.LABEL,
    schema: Path | None = settings.SCHEMA,
) -> None:
    """Show rows and label rate of each split, and the cardinality of each feature."""
    from rich.console import Console
    from rich.table import Table

    dataset = _load(name, root, cache, label, schema)
    console = Console()
    for key in ("summary", "protocol", "terms"):
        console.print(f"{key}: {dataset.meta.get(key, '-')}", markup=False, highlight=False)
    splits = Table("split", "rows", "label rate")
    for part, split in dataset.splits.items():
        rate = float(split.label.double().mean())
        splits.add_row(part, f"{len(split):,}", f"{rate:.4f}")
    console.print(splits)
    features = Table("feature", "cardinality", "several values", "unknown in training")
    for feature in dataset.schema.features:
        counts = feature.counts
        unknown = "-" if counts is None else f"{counts[0] / max(1, counts.sum()):.4f}"
        several = feature.pooling if feature.multi else ""
        size = "unbounded" if feature.cardinality is None else f"{feature.cardinality:,}"
        features.add_row(feature.name, size, several, unknown)
    console.print(features)
    known = [feature.cardinality or 0 for feature in dataset.schema.features]
    numeric = ", ".join(dataset.schema.numeric) or "none"
    console.print(f"{sum(known):,} values in all; numeric columns: {numeric}", markup=False)


def _load(
    name: str, root: Path | None, cache: Path | None, label: str | None, schema: Path | None
) -> Dataset:
    from featemb import datasets

    options: dict[str, Any] = settings.given(root=root, cache=cache, label=label, schema=schema)
    return datasets.load(name, **options)


def _separators(texts: list[str]) -> dict[str, str]:
    from featemb.errors import ConfigError

    found = {}
    for text in texts:
        name, equals, separator = text.partition("=")
        if not (name and equals and separator):
            raise ConfigError(f"--separator needs COLUMN=TEXT, got {text!r}")
        found[name] = separator
    return found


def _print_recipe(recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("column", "is", "because")
    table.add_row(recipe.label, "label", "as told")
    for column in recipe.columns:
        kind = f"{column.kind}, several values" if column.multi else column.kind
        table.add_row(column.name, kind, column.reason)
    for name, reason in recipe.dropped.items():
        table.add_row(name, "left out", reason)
    Console().print(table)


def _write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    from featemb.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
