"""``featemb bench``: a sweep of runs, from a TOML file or from flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

if TYPE_CHECKING:
    from featemb.benchmarks.config import RunConfig
    from featemb.benchmarks.grid import Grid
    from featemb.benchmarks.protocol import Tuning


_WORTH_PROBING = 12  # runs to do; fewer are done soon, whatever they take


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("bench")(bench)


def bench(
    file: Path | None = typer.Argument(None, help="A sweep as TOML; flags win over it."),
    data: list[str] | None = typer.Option(None, help="Data set or path (repeatable)."),
    model: list[str] | None = typer.Option(None, help="CTR model (repeatable) [dcnv2]."),
    method: list[str] | None = typer.Option(
        None, help="Method, such as 'unified(lookups=2)+int8' (repeatable). full always runs."
    ),
    ratio: list[float] | None = typer.Option(None, help="Compression ratio (repeatable)."),
    budget: list[str] | None = typer.Option(None, help="Serving bytes, as 2MB (repeatable)."),
    seed: list[int] | None = typer.Option(None, help="Seed (repeatable) [0]."),
    out: Path | None = typer.Option(None, help="Folder of the runs [runs/<name of FILE>]."),
    jobs: int = typer.Option(1, min=1, help="Processes that share the runs."),
    retry_failed: bool = typer.Option(False, "--retry-failed", help="Do failed runs again."),
    dry_run: bool = typer.Option(False, "--dry-run", help="List the runs and do nothing."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    checkpoint: bool = settings.CHECKPOINT,
    checkpoint_minutes: float | None = settings.CHECKPOINT_MINUTES,
    keep_checkpoints: int | None = settings.KEEP_CHECKPOINTS,
    save_model: bool = settings.SAVE_MODEL,
    dim: int | None = settings.DIM,
    epochs: int | None = settings.EPOCHS,
    batch_size: int | None = settings.BATCH_SIZE,
    lr: float | None = settings.LR,
    weight_decay: float | None = settings.WEIGHT_DECAY,
    optimizer: str | None = settings.OPTIMIZER,
    kernel: str | None = settings.KERNEL,
    patience: int | None = settings.PATIENCE,
    anneal: float | None = settings.ANNEAL,
    rows: int | None = settings.ROWS,
    device: str | None = settings.DEVICE,
    threads: int | None = settings.THREADS,
    model_set: list[str] | None = settings.SET,
    label: str | None = settings.LABEL,
    schema: Path | None = settings.SCHEMA,
    root: Path | None = settings.ROOT,
) -> None:
    """Run data sets x models x methods x sizes x seeds; what a folder holds is not run again."""
    train = settings.training(locals())
    axes: dict[str, list[Any] | None] = {"data": data, "models": model, "methods": method}
    axes |= {"ratios": ratio, "budgets": budget, "seeds": seed}
    source = settings.data_options(label, schema, root)
    grids = _grids(file, axes, train, settings.model_settings(model_set), source)
    folder = out or Path("runs") / (file.stem if file else "bench")
    how: dict[str, Any] = {"retry_failed": retry_failed, "jobs": jobs}
    kept = settings.checkpoints(checkpoint, checkpoint_minutes, keep_checkpoints)
    with settings.ends_on_signal(kept):
        configs = _chosen(grids, folder, quiet, dry_run, how | kept)
        if dry_run:
            _list(configs, folder, **how)
        else:
            _sweep(configs, folder, quiet, **how, **kept, save_model=save_model)


def _chosen(
    grids: list[Grid], folder: Path, quiet: bool, dry_run: bool, how: dict[str, Any]
) -> list[RunConfig]:
    """Return the runs of all parts, with the settings that tuning chose."""
    configs: list[RunConfig] = []
    for tune, runs in _by_tuning(grids):
        configs += runs if tune is None else _tuned(runs, tune, folder, quiet, dry_run, how)
    return list(dict.fromkeys(configs))


def _grids(
    file: Path | None,
    axes: dict[str, list[Any] | None],
    train: dict[str, Any],
    model: dict[str, Any],
    options: dict[str, Any],
) -> list[Grid]:
    """Merge the file's parts and the flags; a size flag replaces both ratios and budgets."""
    from featemb.benchmarks.grid import Grid, grids

    given: dict[str, Any] = {axis: tuple(values) for axis, values in axes.items() if values}
    if file is None and "data" not in given:
        raise ConfigError("name a sweep file or at least one --data")
    if "ratios" in given or "budgets" in given:
        given = {"ratios": (), "budgets": ()} | given
    parts = [Grid(**given)] if file is None else [replace(part, **given) for part in grids(file)]
    return [_with_flags(part, train, model, options) for part in parts]


def _with_flags(
    grid: Grid, train: dict[str, Any], model: dict[str, Any], options: dict[str, Any]
) -> Grid:
    models = {name: {**grid.model_configs.get(name, {}), **model} for name in grid.models}
    data = {name: {**grid.data_options.get(name, {}), **options} for name in grid.data}
    return replace(
        grid,
        train={**grid.train, **train},
        model_configs={**grid.model_configs, **models},
        data_options={**grid.data_options, **data},
    )


def _by_tuning(grids: list[Grid]) -> list[tuple[Tuning | None, list[RunConfig]]]:
    """Return the runs of the parts that are tuned alike, equal ones once.

    Raises:
        ConfigError: a data set is tuned in two ways: its choices would replace each other.
    """
    found: list[tuple[Tuning | None, list[RunConfig]]] = []
    tuned: dict[str, Tuning | None] = {}
    for grid in grids:
        for name in grid.data:
            if tuned.setdefault(name, grid.tune) != grid.tune:
                raise ConfigError(f"two parts of the sweep tune {name!r} in different ways")
        alike = [runs for tune, runs in found if tune == grid.tune]
        if alike:
            alike[0].extend(grid.runs())
        else:
            found.append((grid.tune, grid.runs()))
    return [(tune, list(dict.fromkeys(runs))) for tune, runs in found]


def _tuned(
    configs: list[RunConfig],
    tuning: Tuning,
    folder: Path,
    quiet: bool,
    dry_run: bool,
    how: dict[str, Any],
) -> list[RunConfig]:
    """Choose the settings of the sweep's runs; in a dry run, those that are recorded."""
    from featemb.benchmarks import protocol
    from featemb.benchmarks.progress import watcher
    from featemb.benchmarks.summary import tuned_table

    questions = protocol.plan(configs, tuning)
    trials = [trial for question in questions for trial in question.trials]
    if dry_run:
        typer.echo("to choose settings:")
        _list(trials, folder, how["retry_failed"], how["jobs"])
        made = protocol.choices(questions, folder)
        typer.echo(f"{len(made)} of {len(questions)} choices made; then, with the settings chosen:")
        return protocol.chosen(configs, tuning, made)
    if not quiet:
        typer.echo(f"choosing {', '.join(tuning.values)} for {len(questions)} methods and data:")
        _estimate(trials, folder, how["retry_failed"], how["jobs"])
    with watcher(len(trials), quiet) as watch:
        configs, made = protocol.tune(configs, tuning, folder, progress=watch, **how)
    if not quiet:
        settings.console().print(tuned_table(made))
    return configs


def _list(configs: list[RunConfig], folder: Path, retry_failed: bool, jobs: int) -> None:
    from rich.console import Console

    from featemb.benchmarks.summary import plan_table

    Console().print(plan_table(configs, folder, retry_failed))
    _estimate(configs, folder, retry_failed, jobs)


def _estimate(configs: list[RunConfig], folder: Path, retry_failed: bool, jobs: int) -> None:
    """Say how long the runs will take; time some steps where many of them are to do."""
    from featemb.benchmarks.estimate import estimate, to_do

    todo, done = to_do(configs, folder, retry_failed)
    found = estimate(todo, done, probe=len(todo) >= _WORTH_PROBING)
    typer.echo(f"{len(configs)} runs, {found.text(jobs)}")


def _sweep(
    configs: list[RunConfig],
    folder: Path,
    quiet: bool,
    *,
    retry_failed: bool,
    jobs: int,
    **options: Any,
) -> None:
    from featemb.benchmarks.progress import watcher
    from featemb.benchmarks.summary import comparison_tables
    from featemb.benchmarks.sweep import sweep

    if not quiet:
        _estimate(configs, folder, retry_failed, jobs)
    with watcher(len(configs), quiet) as watch:
        found = sweep(
            configs, folder, progress=watch, retry_failed=retry_failed, jobs=jobs, **options
        )
    if not quiet:
        console = settings.console()
        for table in comparison_tables(found, folder):
            console.print(table)
    failed = [record for record in found if record["status"] == "failed"]
    for record in failed:
        error = record["error"]
        typer.echo(f"failed: {record['run_id']}: {error['type']}: {error['message']}", err=True)
    typer.echo(f"{len(found) - len(failed)} runs are in {folder}; run `featemb report {folder}`")
    # A size that a method cannot reach is an answer, not a fault.
    if any(record["error"]["type"] != "BudgetError" for record in failed):
        raise typer.Exit(1)
