"""``featemb speed``: latency, throughput and memory of a served model, beside plain tables."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

if TYPE_CHECKING:
    from featemb.benchmarks.serving.speed import Settings
    from featemb.benchmarks.serving.subject import Subject
    from featemb.schema import Schema

_WIDTH = 120
_WHAT = "packages, or folders of runs that kept their model; none: a model as the options say"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("speed")(speed)


def speed(
    what: Annotated[list[Path] | None, typer.Argument(help=_WHAT)] = None,
    targets: str | None = typer.Option(
        None, help="Forms, as 'eager,onnx' [eager,compiled,aoti,onnx, those that can be had]."
    ),
    batch: list[int] | None = typer.Option(
        None, help="Samples of a call (repeatable) [1 64 512 4096]."
    ),
    rounds: int = typer.Option(200, min=1, help="Calls of every form and batch size."),
    threads: int | None = settings.THREADS,
    device: str = typer.Option("cpu", help="cpu, cuda or cuda:<number>."),
    ids: str = typer.Option("uniform", help="How ids are drawn: uniform, or zipf."),
    plain: bool = typer.Option(
        True, "--plain/--no-plain", help="Measure the same network over plain fp32 tables too."
    ),
    memory: bool = typer.Option(
        True, "--memory/--no-memory", help="Watch the memory of fresh processes that serve."
    ),
    seed: int = typer.Option(0, min=0, help="Of the batches."),
    out: Path | None = typer.Option(None, "--json", help="Write the records to this file."),
    model: str = typer.Option("deepfm", help="Without packages: CTR model."),
    method: str = typer.Option("full+int8", help="Without packages: method and codec."),
    rows: int | None = typer.Option(None, min=1, help="Without packages: ids of all features."),
    features: int = typer.Option(26, min=1, help="With --rows: features that share them evenly."),
    cardinalities: str | None = typer.Option(
        None, help="Instead of --rows: ids of each feature: '1e6,5000' or 'user=1e6,hour=24'."
    ),
    numeric: int = typer.Option(0, min=0, help="Without packages: numeric columns."),
    dim: int = typer.Option(16, min=1, help="Without packages: width of a feature."),
    ratio: float | None = typer.Option(None, help="Without packages: compression ratio."),
    budget: str | None = typer.Option(None, help="Without packages: serving bytes, as 2MB."),
    model_set: list[str] | None = settings.SET,
) -> None:
    """Measure how fast a served model answers in every form, and what it takes."""
    chosen = locals()
    records = _records(what or [], chosen)
    if out is not None:
        _write(records, out)
    wanted = records[0]["settings"]["targets"] if targets else ("eager",)
    if any(form.split()[1] in wanted for one in records for form in one["missing"]):
        raise typer.Exit(1)


def _records(what: list[Path], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure every package; show each as it is done."""
    from featemb.benchmarks.config import check_device
    from featemb.benchmarks.serving import subject
    from featemb.benchmarks.serving.speed import Settings

    check_device(chosen["device"])
    named = ("rounds", "threads", "device", "ids", "seed")
    how = Settings(
        **{name: chosen[name] for name in named},
        **settings.given(batches=chosen["batch"], targets=_targets(chosen["targets"])),
        memory_batches=Settings.memory_batches if chosen["memory"] else 0,
    )
    made = bool(chosen["rows"] or chosen["cardinalities"])
    if made == bool(what) or (chosen["rows"] and chosen["cardinalities"]):
        raise ConfigError("give packages, or one of --rows and --cardinalities")
    with tempfile.TemporaryDirectory(prefix="featemb-speed-") as name:
        folder = Path(name)
        records = []
        for path in what or [_untrained(chosen, folder / "made.safetensors")]:
            one = subject.read(path, folder, chosen["plain"])
            records.append(_measured(one, how, None if what else chosen, path))
    return records


def _measured(
    one: Subject, how: Settings, made: dict[str, Any] | None, path: Path
) -> dict[str, Any]:
    from featemb.benchmarks.serving import speed as serving
    from featemb.benchmarks.serving.table import latency_table, memory_table

    console = settings.console(_WIDTH)
    with console.status("") as status:
        record = serving.measure(one, how, status.update)
    title = str(path) if made is None else f"{made['model']}, {made['method']}, untrained"
    if made is None:
        record["subject"]["package"] = str(path)
    else:
        record["subject"]["method"] = made["method"]
    size = one.facts["bytes"]
    console.print(latency_table(record, f"{title}: {size['tensors'] / 1e6:,.1f} MB, {how.ids} ids"))
    if record["memory"]:
        console.print(memory_table(record))
    for form, why in record["missing"].items():
        typer.echo(f"{form}: {why}")
    return record


def _untrained(chosen: dict[str, Any], path: Path) -> Path:
    """Write the package of an untrained model, as the options say."""
    from featemb.benchmarks.serving import subject

    size = {"dim": chosen["dim"], **settings.given(ratio=chosen["ratio"], budget=chosen["budget"])}
    schema = _schema(chosen["rows"], chosen["features"], chosen["cardinalities"], chosen["numeric"])
    subject.untrained(
        schema,
        chosen["model"],
        chosen["method"],
        size,
        settings.model_settings(chosen["model_set"]),
        path,
    )
    return path


def _schema(rows: int | None, features: int, cardinalities: str | None, numeric: int) -> Schema:
    from featemb.cli.plan import read_cardinalities
    from featemb.schema import Feature, Schema

    if cardinalities:
        found = read_cardinalities(cardinalities).features
    else:
        assert rows is not None
        if rows < features:
            raise ConfigError(f"--rows {rows} are fewer than --features {features}")
        found = tuple(Feature(f"f{i}", rows // features) for i in range(features))
    return Schema(found, [f"n{number}" for number in range(numeric)])


def _targets(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(one.strip() for one in text.split(","))


def _write(records: list[dict[str, Any]], path: Path) -> None:
    from featemb.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
