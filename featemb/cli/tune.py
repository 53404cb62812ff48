"""``featemb tune``: search the settings of a method and of its training at a fixed size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings
from featemb.errors import ConfigError

if TYPE_CHECKING:
    from featemb.benchmarks.config import RunConfig
    from featemb.benchmarks.search import Found
    from featemb.benchmarks.space import Space
    from featemb.benchmarks.study import Plan

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("tune")(tune)


def tune(
    data: str = typer.Option(..., help="Data set, or path of a table."),
    model: str | None = typer.Option(None, help="CTR model [dcnv2]."),
    method: str | None = typer.Option(
        None, help="Method; settings given here stay, such as 'qr(combine=add)' [full]."
    ),
    ratio: float | None = typer.Option(None, help="Compression ratio of every trial."),
    budget: str | None = typer.Option(None, help="Serving bytes of every trial, as 2MB."),
    seed: int | None = typer.Option(None, help="Seed of every trial [0]."),
    knob: list[str] | None = typer.Option(
        None, help="A setting of the method to search (repeatable) [all that it declares]."
    ),
    train_knob: list[str] | None = typer.Option(
        None, help="A setting of training to search, such as lr (repeatable)."
    ),
    trials: int = typer.Option(20, min=1, help="Number of different settings to try."),
    sampler: str = typer.Option("tpe", help="tpe, random or grid."),
    sampler_seed: int = typer.Option(0, help="Seed of the sampler."),
    timeout: str | None = typer.Option(None, help="Begin no trial after, as 90s, 30m or 2h."),
    prune: bool = typer.Option(
        False, "--prune/--no-prune", help="Stop runs below the median at the same evaluation."
    ),
    jobs: int = typer.Option(1, min=1, help="Processes; so many trials are chosen at once."),
    out: Path = typer.Option(Path("runs/tune"), help="Folder of the runs and the search."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    checkpoint: bool = settings.CHECKPOINT,
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
    """Search settings by validation AUC; a search that was killed goes on."""
    from featemb.benchmarks.study import Plan

    fixed = settings.given(model=model, method=method, ratio=ratio, budget=budget, seed=seed)
    fixed |= settings.training(locals())
    options = settings.data_options(label, schema, root)
    space = _space(data, options, settings.model_settings(model_set), fixed, knob, train_knob)
    limit = None if timeout is None else parse_seconds(timeout)
    how: dict[str, Any] = {"trials": trials, "sampler": sampler, "seed": sampler_seed}
    plan = Plan(**how, jobs=jobs, timeout=limit, prune=prune, checkpoint=checkpoint)
    _search(space, plan, out, quiet)


def _space(
    data: str,
    options: dict[str, Any],
    model: dict[str, Any],
    fixed: dict[str, Any],
    knobs: list[str] | None,
    train_knobs: list[str] | None,
) -> Space:
    from featemb.benchmarks.config import RunConfig
    from featemb.benchmarks.space import Space

    base = RunConfig(data=data, data_options=options, model_config=model, **fixed)
    return Space.of(base, knobs or (), train_knobs or ())


def _search(space: Space, plan: Plan, out: Path, quiet: bool) -> None:
    from featemb.benchmarks.progress import watcher
    from featemb.benchmarks.search import search

    if not quiet:
        _show_space(space)
    with watcher(plan.trials, quiet) as watch:
        found = search(space, plan, out, watch)
    _show(found, space, out)


def parse_seconds(text: str) -> float:
    """Read a time such as "90", "90s", "30m" or "1.5h".

    Raises:
        ConfigError: the text is no time.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smh]?)\s*", text)
    if match is None:
        raise ConfigError(f"cannot read the time {text!r}; write such as 90s, 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def _show_space(space: Space) -> None:
    for knob in space.knobs:
        values = knob.values
        if values.choices:
            tried = ", ".join(str(one) for one in values.choices)
        else:
            tried = f"{values.low:g} to {values.high:g}{', log' * values.log}"
        typer.echo(f"searching {knob.name}: {tried}")


def _show(found: Found, space: Space, out: Path) -> None:
    """Print the trials and what is best, and write that down."""
    from featemb.benchmarks.summary import run_table, trials_table

    console = settings.console()
    console.print(trials_table(found, [knob.name for knob in space.knobs]))
    if found.best is None or found.record is None:
        typer.echo("no trial has a validation AUC", err=True)
        raise typer.Exit(1)
    if found.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.importance.items())
        typer.echo(f"what decides (PED-ANOVA): {shares}\n")
    typer.echo("the best trial by validation AUC, the only one whose test split is shown:")
    console.print(run_table(found.record))
    _write(found.best, out)


def _write(best: RunConfig, out: Path) -> None:
    from featemb.benchmarks.paste import command, toml
    from featemb.files import replacing

    text = toml(best)
    with replacing(out / "best.toml") as path:
        path.write_text(text, encoding="utf-8")
    typer.echo(f"\n{command(best)}\n\n{text}\n{out / 'best.toml'} holds this for featemb bench")
