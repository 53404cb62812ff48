"""``featemb convert``: a trained model with its tables stored by codecs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from featemb.benchmarks.conversion import Measured, Subject
    from featemb.conversion.report import Conversion

_LOG_WIDTH = 140


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("convert")(convert)


def convert(
    model: str = typer.Argument(
        ...,
        help="Folder of a run with --save-model, a safetensors package, or a factory as "
        "'package.module:function'.",
    ),
    weights: Path | None = typer.Option(
        None, help="The factory's weights: .safetensors, or a state dict of torch."
    ),
    codec: list[str] | None = typer.Option(
        None,
        help="Codec [int8], or one by names, as '*user*=pq(parts=4)' (repeatable; the first that "
        "fits counts). With a limit: what to choose from.",
    ),
    tables: list[str] | None = typer.Option(
        None, help="Convert tables of these names alone, as '*user*' (repeatable)."
    ),
    skip: list[str] | None = typer.Option(
        None, help="Leave tables of these names as they are (repeatable)."
    ),
    min_bytes: str | None = typer.Option(None, help="Leave smaller tables, as 1MB."),
    budget: str | None = typer.Option(None, help="Limit of bytes of all tables, as 2MB."),
    ratio: float | None = typer.Option(None, help="The same as a compression ratio."),
    out: Path | None = typer.Option(None, help="Write the converted model to this file."),
    data: str | None = typer.Option(
        None, help="Score before and after: what the factory's batches(path) reads; a run's table."
    ),
    auc: bool = typer.Option(True, "--auc/--no-auc", help="Score a run on its test split."),
    label: str | None = typer.Option(None, help="Second argument of the factory's batches."),
    schema: Path | None = settings.SCHEMA,
    root: Path | None = settings.ROOT,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Store a trained model's embedding tables by codecs, and tell what it costs before and after.

    A factory is imported and called, so name only code that you trust; files are never unpickled.
    """
    import featemb

    options = settings.data_options(None, schema, root)
    subject = _subject(model, weights, (data, label), options, auc)
    made = featemb.convert(
        subject.model,
        _codecs(codec, budget is not None or ratio is not None),
        tables=tables,
        skip=skip or (),
        min_bytes=min_bytes,
        budget=budget,
        ratio=ratio,
        schema=subject.schema,
    )
    measured = _measured(subject, made)
    if out is not None:
        subject.save(made, out)
    _show(featemb.conversion(made), measured, out, as_json)


def _subject(
    model: str,
    weights: Path | None,
    given: tuple[str | None, str | None],
    options: dict[str, Any],
    auc: bool,
) -> Subject:
    from featemb.benchmarks import conversion
    from featemb.conversion.files import save_converted

    data, label = given
    if Path(model).exists():
        if weights is not None or label is not None:
            raise ConfigError("--weights and --label belong to a factory; a run has its own")
        return conversion.of_run(Path(model), data, options, auc)
    if ":" not in model:
        raise ConfigError(
            f"{model!r} is neither a run's folder, nor a package, nor a factory "
            "'package.module:function'"
        )
    return conversion.of_factory(model, weights, data, label, save_converted)


def _codecs(texts: list[str] | None, limited: bool) -> Any:
    """Return the texts of ``--codec`` as `featemb.convert` takes them."""
    if not texts:
        return None
    pairs = [_pair(text) for text in texts]
    if any(pattern is not None for pattern, _ in pairs):
        return {"*" if pattern is None else pattern: codec for pattern, codec in pairs}
    if len(pairs) > 1 and not limited:
        raise ConfigError("several --codec need names (as '*user*=int4'), or --budget or --ratio")
    return [codec for _, codec in pairs] if limited else pairs[0][1]


def _pair(text: str) -> tuple[str | None, str]:
    """Split NAMES=CODEC; an equals sign behind a bracket is the codec's own."""
    head, equals, tail = text.partition("=")
    return (head.strip(), tail.strip()) if equals and "(" not in head else (None, text)


def _measured(subject: Subject, made: nn.Module) -> Measured | None:
    if subject.scorer is None:
        return None
    from featemb.benchmarks.conversion import measure

    return measure(subject.scorer, subject.model, made)


def _show(found: Conversion, measured: Measured | None, out: Path | None, as_json: bool) -> None:
    if as_json:
        document = found.to_dict() | {
            "auc": None if measured is None else measured.to_dict(),
            "out": None if out is None else str(out),
        }
        typer.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    settings.console(_LOG_WIDTH).print(_table(found))
    typer.echo(f"everything else: {found.rest:,} bytes, as before")
    if measured is not None:
        for line in _auc_lines(measured):
            typer.echo(line)
    if out is not None:
        typer.echo(f"the converted model is in {out} ({out.stat().st_size:,} bytes)")


def _table(found: Conversion) -> Table:
    from rich.table import Table

    table = Table()
    for head in ("table", "rows x width", "codec", "before", "after", "ratio", "error"):
        table.add_column(head, justify="left" if head in ("table", "codec") else "right")
    for one in found.tables:
        also = f" (+{len(one.others)})" if one.others else ""
        table.add_row(
            f"{one.name or '(the model)'}{also}",
            f"{one.rows:,} x {one.width}" if one.rows else "",
            one.codec or f"stays: {one.reason}",
            f"{one.before:,}",
            f"{one.after:,}",
            f"{one.before / one.after:.2f}",
            "" if one.error is None else f"{one.error:.2%}",
        )
    table.add_section()
    total = (f"{found.before:,}", f"{found.after:,}", f"{found.ratio:.2f}")
    table.add_row("all tables", "", "", *total, "")
    return table


def _auc_lines(measured: Measured) -> list[str]:
    lines = [
        f"AUC {when} {one['value']:.5f} [{one['low']:.5f}, {one['high']:.5f}]"
        for when, one in (("before", measured.before), ("after ", measured.after))
    ]
    one = measured.difference
    return [
        *lines,
        f"difference {one.value:+.5f} [{one.low:+.5f}, {one.high:+.5f}], p = {one.p:.3g} "
        f"(DeLong, paired, {measured.rows:,} test rows)",
    ]
