"""``featemb plan``: what every method would take, and what to expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError, SchemaError

if TYPE_CHECKING:
    import pandas as pd

    from featemb.placement import Devices
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
    gpus: int = typer.Option(1, min=0, help="GPUs to place tables on."),
    gpu_memory: str | None = typer.Option(None, help="Memory of each GPU, as 80GB."),
    host_memory: str | None = typer.Option(None, help="Memory of the host, as 1TB."),
    place_for: str = typer.Option("training", help="What is placed: training or serving."),
    placer: str = typer.Option("auto", help="Who places: auto, torchrec or featemb."),
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
    devices = _devices(gpus, gpu_memory, host_memory)
    where: dict[str, Any] = {"use": place_for, "placer": placer, "optimizer": optimizer}
    size: dict[str, Any] = {"dim": dim, "ratio": ratio, "budget": budget}
    frame = featemb.plan(
        asked, **size, specs=method, compositions=compositions, devices=devices, **where
    )
    frame = _ranked(frame, runs, evidence_data, evidence_model)
    title = planning.title(asked, dim, ratio, budget)
    for path in out or ():
        planning.write(frame, path, title)
    _show(frame, title)
    if devices is not None and len(frame) == 1 and bool(frame.fits.iloc[0]):
        layer = featemb.embedding(asked, frame.method.iloc[0], **size, device="meta")
        settings.console(_LOG_WIDTH).print(planning.places(featemb.place(layer, devices, **where)))


def _ranked(
    frame: pd.DataFrame, runs: list[Path] | None, data: str | None, model: str | None
) -> pd.DataFrame:
    """Order a plan: by what runs let expect, or by size."""
    if runs:
        from featemb.benchmarks.evidence import rank

        return rank(frame, runs, data, model)
    from featemb.benchmarks import planning

    return planning.sort(frame)


def _devices(gpus: int, gpu_memory: str | None, host_memory: str | None) -> Devices | None:
    from featemb.placement import Devices

    if gpu_memory is None and host_memory is None:
        return None
    if gpu_memory is None:
        gpus = 0
    return Devices(gpus=gpus, gpu_memory=gpu_memory or 0, host_memory=host_memory or 0)


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
