"""``featemb train``: one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import ranks, settings
from featemb.errors import RunError

if TYPE_CHECKING:
    from featemb.benchmarks.config import RunConfig
    from featemb.datasets import Dataset


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train)


def train(
    data: str = typer.Option(..., help="Data set, or path of a table."),
    model: str | None = typer.Option(None, help="CTR model [dcnv2]."),
    method: str | None = typer.Option(None, help="Method, as 'unified(lookups=2)+int8' [full]."),
    ratio: float | None = typer.Option(None, help="Compression ratio."),
    budget: str | None = typer.Option(None, help="Serving bytes of all embeddings, as 2MB."),
    seed: int | None = typer.Option(None, help="Seed [0]."),
    out: Path = typer.Option(Path("runs/train"), help="Folder of the runs."),
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
    save_schema: Path | None = typer.Option(None, help="Write the schema in use to this file."),
    root: Path | None = settings.ROOT,
    distributed: bool = typer.Option(
        False, "--distributed", help="One process of several, started by torchrun."
    ),
    sharding: str = typer.Option(
        "row_wise", help="How rows are divided: row_wise, column_wise, table_wise or auto."
    ),
    timeout: float = typer.Option(50.0, help="Seconds that the processes wait for each other."),
) -> None:
    """Train, freeze and test one network, and print what it costs and what it scores."""
    from featemb.benchmarks import sources
    from featemb.benchmarks.config import RunConfig

    config = RunConfig(
        data=data,
        data_options=settings.data_options(label, schema, root),
        model_config=settings.model_settings(model_set),
        **settings.given(model=model, method=method, ratio=ratio, budget=budget, seed=seed),
        **settings.training(locals()),
    )
    how = settings.checkpoints(checkpoint, checkpoint_minutes, keep_checkpoints)
    wanted = how | {"save_model": save_model}
    config.check_here()
    with settings.ends_on_signal(how):
        if distributed:
            ranks.train(config, out, quiet, wanted, ranks.Wishes(sharding, timeout, save_schema))
            return
        dataset = sources.load(config)
        if save_schema is not None:
            sources.save_recipe(dataset, save_schema)
        ranks.show(_run(config, dataset, out, quiet, wanted), out)


def _run(
    config: RunConfig, dataset: Dataset, out: Path, quiet: bool, how: dict[str, Any]
) -> dict[str, Any]:
    """Run, or read the record of the same run done before."""
    from featemb.benchmarks import records
    from featemb.benchmarks.progress import watcher
    from featemb.benchmarks.run import run_id, run_one
    from featemb.benchmarks.sweep import is_done

    name = run_id(config)
    out.mkdir(parents=True, exist_ok=True)
    with records.lock(out, name) as held:
        if not held:
            raise RunError(f"another process is doing the run {name} in {out}")
        if is_done(out, name, retry_failed=True):
            return ranks.done_before(out, name, how["save_model"])
        with watcher(1, quiet) as watch:
            return run_one(config, out, dataset, watch, **how)
