"""``featemb drift``: train on a day, test on the next; vocabularies rebuilt, fixed, or none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

if TYPE_CHECKING:
    from featemb.benchmarks.drift_config import DriftConfig


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("drift")(drift)


def drift(
    data: str | None = typer.Option(
        None, help="Data set in order of time, or path of a table; none: only print the table."
    ),
    days: int = typer.Option(10, help="Days of equally many rows."),
    method: list[str] | None = typer.Option(
        None, help="Hash-addressed method over raw ids (repeatable) [hash, unified(lookups=2)]."
    ),
    ratio: list[float] | None = typer.Option(
        None, help="Full tables of the first day / bytes of the method (repeatable) [1]."
    ),
    window: list[int] | None = typer.Option(
        None, help="Rebuild of so many days too (repeatable); of all days it always is."
    ),
    min_count: int = typer.Option(1, help="Ids seen less often are unknown to a vocabulary."),
    seed: list[int] | None = typer.Option(None, help="Seed (repeatable) [0]."),
    out: Path = typer.Option(Path("runs/drift"), help="Folder of the records."),
    markdown: bool = typer.Option(False, "--markdown", help="Print the table as Markdown."),
    time: str | None = typer.Option(None, help="Column of time of a table given as --data PATH."),
    option: list[str] | None = typer.Option(
        None, help="An option of the data, as --option rows=50000 (repeatable)."
    ),
    model: str = typer.Option("dcnv2", help="CTR model."),
    dim: int = typer.Option(16, help="Width of a feature."),
    epochs: int = typer.Option(1, help="Passes over each day."),
    batch_size: int = typer.Option(256, help="Samples of a training step."),
    lr: float = typer.Option(1e-3, help="Learning rate."),
    optimizer: str = typer.Option("row_adam", help="As of `featemb train`."),
    model_set: list[str] | None = settings.SET,
    label: str | None = settings.LABEL,
    schema: Path | None = settings.SCHEMA,
    root: Path | None = settings.ROOT,
) -> None:
    """Train on each day, test on the next one, and show AUC and cost; what is there stays."""
    from featemb.benchmarks.drift_table import read_all

    if data is not None:
        source = settings.data_options(label, schema, root) | settings.model_settings(option)
        fixed = {
            "data": data,
            "data_options": source | settings.given(time=time),
            "days": days,
            "min_count": min_count,
            "model": model,
            "model_config": settings.model_settings(model_set),
            **{"dim": dim, "epochs": epochs, "batch_size": batch_size},
            **{"lr": lr, "optimizer": optimizer},
        }
        methods = method or ["hash", "unified(lookups=2)"]
        _run(_configs(fixed, methods, ratio or [1.0], window or [], seed or [0]), out)
    elif method or ratio or window or seed:
        raise ConfigError("name the data with --data")
    _show(read_all(out), markdown)


def _configs(
    fixed: dict[str, Any],
    methods: list[str],
    ratios: list[float],
    windows: list[int],
    seeds: list[int],
) -> list[DriftConfig]:
    from featemb.benchmarks.drift_config import DriftConfig

    found = []
    for seed in seeds:
        same = {**fixed, "seed": seed}
        found += [DriftConfig(**same, way="rebuilt", window=w) for w in (None, *windows)]
        found.append(DriftConfig(**same, way="fixed"))
        for ratio in ratios:
            found += [DriftConfig(**same, way="raw", method=m, ratio=ratio) for m in methods]
    return found


def _run(configs: list[DriftConfig], out: Path) -> None:
    from featemb.benchmarks.drift import read, run
    from featemb.datasets.timeline import timeline

    first = configs[0]
    data = timeline(first.data, first.days, **first.data_options)
    for config in configs:
        record = read(run(config, out, data))
        typer.echo(f"{record['run_id']}: mean AUC {record['mean_auc']:.4f}")


def _show(records: list[dict[str, Any]], as_markdown: bool) -> None:
    from rich.table import Table

    from featemb.benchmarks.drift_table import HEAD, by_data, markdown

    if as_markdown:
        typer.echo(markdown(records))
        return
    for name, rows in by_data(records).items():
        table = Table(*HEAD, title=name)
        for row in rows:
            table.add_row(*row)
        settings.console().print(table)
