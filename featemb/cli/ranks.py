"""``featemb train --distributed``: one process of a run in several; and what a run shows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from featemb.errors import RunError

if TYPE_CHECKING:
    from featemb.benchmarks.config import RunConfig
    from featemb.benchmarks.distributed import Ranks
    from featemb.datasets import Dataset


class Wishes(NamedTuple):
    """Options of a run in several processes.

    Attributes:
        sharding: how rows are divided.
        timeout: seconds that the processes wait for each other.
        save_schema: where the schema in use is written, or None.
    """

    sharding: str
    timeout: float
    save_schema: Path | None


def train(config: RunConfig, out: Path, quiet: bool, how: dict[str, Any], wishes: Wishes) -> None:
    """Do this process's part of a run; process 0 writes and shows the record.

    Raises:
        ConfigError: torchrun did not start this process, or the run cannot be divided.
    """
    from featemb.benchmarks import sources
    from featemb.benchmarks.distributed import (
        Place,
        Ranks,
        check_kernel,
        one_first,
        process_group,
    )

    # torch tells developers of tracing, at the first batch, of what TorchRec asks it
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    check_kernel(config)
    place, side = Place.of_environment(), Ranks(wishes.sharding)
    config = config.at(device=place.device(config.device))
    out.mkdir(parents=True, exist_ok=True)
    with process_group(config.device, wishes.timeout):
        dataset = one_first(lambda: sources.load(config))
        if place.rank == 0:
            if wishes.save_schema is not None:
                sources.save_recipe(dataset, wishes.save_schema)
            show(_lead(config, dataset, out, quiet, how, side), out)
        else:
            _follow(config, dataset, out, how, side)


def _lead(
    config: RunConfig, dataset: Dataset, out: Path, quiet: bool, how: dict[str, Any], side: Ranks
) -> dict[str, Any]:
    """Run together with the others, or read the record of the same run done before."""
    from featemb.benchmarks import records
    from featemb.benchmarks.progress import watcher
    from featemb.benchmarks.run import run_id, run_one
    from featemb.benchmarks.sweep import is_done
    from featemb.torchrec.checkpoint import agreed

    name = run_id(config)
    with records.lock(out, name) as held:
        if not held:
            raise RunError(f"another process is doing the run {name} in {out}")
        if not agreed(not is_done(out, name, retry_failed=True)):
            return done_before(out, name, how["save_model"])
        with watcher(1, quiet) as watch:
            return run_one(config, out, dataset, watch, side=side, **how)


def _follow(
    config: RunConfig, dataset: Dataset, out: Path, how: dict[str, Any], side: Ranks
) -> None:
    from featemb.benchmarks import records
    from featemb.benchmarks.distributed import follow
    from featemb.benchmarks.run import run_id
    from featemb.torchrec.checkpoint import agreed

    if agreed(False):  # what this process says does not count
        state = None
        if how["checkpoint"]:
            kept = how.get("checkpoint_minutes"), how.get("keep_checkpoints", 1)
            state = records.checkpoint(out, run_id(config), *kept)
        follow(config, dataset, side, state)


def done_before(out: Path, name: str, save_model: bool) -> dict[str, Any]:
    """Say that a run is there already, and return its record."""
    from featemb.benchmarks import records
    from featemb.benchmarks.exporting import MODEL

    typer.echo(f"{out} holds this run already")
    if save_model and not (out / name / MODEL).is_file():
        typer.echo("its model was not kept; to keep one, give another --out")
    return records.read(out / name)


def show(record: dict[str, Any], out: Path) -> None:
    """Print a record, or the error of a run that failed, which ends the process."""
    from rich.console import Console

    from featemb.benchmarks.summary import run_table

    if record["status"] == "failed":
        error = record["error"]
        typer.echo(f"error: {error['type']}: {error['message']}", err=True)
        typer.echo(f"the record is in {out / record['run_id']}", err=True)
        raise typer.Exit(1)
    Console().print(run_table(record))
    typer.echo(f"the record is in {out / record['run_id']}")
