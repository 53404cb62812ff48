"""``featemb export``: a trained run to a file for serving, and checks of such files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featemb.errors import ConfigError

if TYPE_CHECKING:
    from featemb.export import Artefact, Check

_ENDINGS = {
    "safetensors": "safetensors",
    "pt2": "pt2",
    "aoti": "aoti.pt2",
    "onnx": "onnx",
    "torchrec": "torchrec.safetensors",
}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export")(export)


def export(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run trained with --save-model, or its model file."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(help="safetensors, pt2, aoti, onnx or torchrec (repeatable) [safetensors]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write [RUN/served.ENDING].")] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="The file takes encoded ids, not raw rows.")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest allowed difference of an output [1e-5].")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check a file written before, instead of exporting.")
    ] = None,
) -> None:
    """Export a run's model, compare the file with it on real rows, and print what it takes."""
    if check is not None:
        if run is not None or to or out is not None:
            raise ConfigError("--check FILE stands alone: it exports nothing")
        from featemb.export import check as check_file

        _show_check(check_file(check))
        return
    if run is None:
        raise ConfigError("give the folder of a run, or --check FILE")
    targets = to or ["safetensors"]
    if out is not None and len(targets) > 1:
        raise ConfigError("--out names one file: give one --to")
    settings: dict[str, Any] = {} if tolerance is None else {"tolerance": tolerance}
    for target in targets:
        _export_one(run, target, out, ids, settings)


def _export_one(run: Path, to: str, out: Path | None, ids: bool, settings: dict[str, Any]) -> None:
    from featemb.benchmarks.exporting import export_run
    from featemb.export import check as check_file
    from featemb.export.checking import target_module

    target_module(to)
    folder = run if run.is_dir() else run.parent
    path = out or folder / f"served.{_ENDINGS[to]}"
    made = export_run(run, path, to, raw=False if ids else None, **settings)
    _show(made)
    _show_check(check_file(path))


def _show(made: Artefact) -> None:
    from rich.table import Table

    from featemb.cli.settings import console

    sizes = made.manifest["bytes"]
    serving = sum(sizes["parts"].values())
    size = made.path.stat().st_size
    typer.echo(f"{made.path} ({made.target})")
    table = Table("part", "bytes")
    table.add_row("whole file", f"{size:,}")
    table.add_row("embeddings", f"{serving:,}")
    table.add_row("network", f"{sizes['net']:,}")
    table.add_row("vocabulary", f"{sizes['vocabulary']:,}")
    rest = size - serving - sizes["net"] - sizes["vocabulary"]
    table.add_row("graph, schema, checks", f"{rest:,}")
    console().print(table)
    takes = "raw rows, as tokens" if made.manifest["raw"] else "encoded ids"
    rows = made.manifest["compared"]
    kind = "generated" if rows["kind"] == "generated" else made.manifest["about"].get("rows", "")
    typer.echo(f"inputs: {', '.join(made.inputs)} ({takes}); output: {made.manifest['output']}")
    typer.echo(
        f"compared with the frozen original on {rows['rows']} {kind} rows, "
        f"within {made.manifest['tolerance']:g}"
    )


def _show_check(found: Check) -> None:
    typer.echo(
        f"{found.artefact.path}: good. {found.size:,} bytes, checksum right; "
        f"{found.rows} kept rows within {found.worst:.2g} ({found.tolerance:g} is allowed)"
    )
