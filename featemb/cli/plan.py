"""``featemb plan``: what every method would take, and what to expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    import pandas as pd

    from featemb.schema import Schema

_LOG_WIDTH = 140


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan")(plan)


def plan(
    data: str | None = typer.Option(None, help="Registered data set, or path of a table."),
    schema: Path | None = typer.Option(
        None, help="Schema: of featemb.Schema.to_json, or of --save-schema with --data PATH."
    ),
    cardinalities: str | None = typer.Option(
        None, help="Number of ids of each feature: '1e9,5000,24' or 'user=1e9,hour=24'."
    ),
    dim: int = typer.Option(16, min=1, help="Width of a feature."),
    ratio: float | None = typer.Option(None, help="Compression ratio."),
    budget: str | None = typer.Option(None, help="Serving bytes, as 2MB or 50GB."),
    method: list[str] | None = typer.Option(None, help="Method or composition (repeatable) [all]."),
    compositions: bool = typer.Option(
        False, "--compositions", help="Plan methods with int8 and int4 rows too."
    ),
    optimizer: str = typer.Option("row_adam", help="Whose state training holds."),
    runs: list[Path] | None = typer.Option(
        None, help="Folder of measured runs: rank by the AUC that they let expect (repeatable)."
    ),
    evidence_data: str | None = typer.Option(None, help="Judge by runs of this data set alone."),
    evidence_model: str | None = typer.Option(None, help="Judge by runs of this model alone."),
    out: list[Path] | None = typer.Option(
        None, help="Write the plan too: .json, .csv or .html (repeatable)."
    ),
    label: str | None = settings.LABEL,
    root: Path | None = settings.ROOT,
) -> None:
    """Solve every method for a size and count its bytes, without making a table."""
    import featemb
    from featemb.benchmarks import planning

    for path in out or ():
        planning.check_form(path)
    asked = _schema(data, schema, cardinalities, label, root)
    frame = featemb.plan(
        asked,
        dim=dim,
        ratio=ratio,
        budget=budget,
        specs=method,
        compositions=compositions,
        optimizer=optimizer,
    )
    if runs:
        from featemb.benchmarks.evidence import rank

        frame = rank(frame, runs, evidence_data, evidence_model)
    else:
        frame = planning.sort(frame)
    title = planning.title(asked, dim, ratio, budget)
    for path in out or ():
        planning.write(frame, path, title)
    _show(frame, title)


def _show(frame: pd.DataFrame, title: str) -> None:
    from featemb.benchmarks import planning

    settings.console(_LOG_WIDTH).print(planning.table(frame, title))
    for line in planning.refused(frame):
        typer.echo(line)


def _schema(
    data: str | None,
    file: Path | None,
    cardinalities: str | None,
    label: str | None,
    root: Path | None,
) -> Schema:
    """Return the schema from the one source that was given."""
    from featemb.schema import Schema

    if bool(cardinalities) == bool(data or file):
        raise ConfigError("give one of --data, --schema and --cardinalities")
    if cardinalities:
        return read_cardinalities(cardinalities)
    if data is not None:
        from featemb import datasets

        options: dict[str, Any] = settings.given(label=label, root=root, schema=file)
        return datasets.load(data, **options).schema
    assert file is not None
    try:
        return Schema.from_json(file.read_text("utf-8"))
    except OSError as error:
        raise SchemaError(f"cannot read the schema {str(file)!r}: {error.strerror}") from error


def read_cardinalities(text: str) -> Schema:
    """Read a schema such as ``1e9,5000,24`` or ``user=1e9,hour=24``.

    Raises:
        SchemaError: an entry is not a whole number >= 1, or a name comes twice.
    """
    from featemb.schema import Feature, Schema

    features = []
    for number, entry in enumerate(text.split(",")):
        name, equals, value = entry.rpartition("=")
        try:
            size = float(value.replace("_", ""))
        except ValueError:
            size = 0.5
        if not size >= 1 or not size.is_integer():
            raise SchemaError(f"--cardinalities: {entry.strip()!r} is not a number of ids >= 1")
        features.append(Feature(name.strip() if equals else f"f{number}", int(size)))
    return Schema(features)
