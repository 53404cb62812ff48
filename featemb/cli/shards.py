"""``featemb data encode`` and ``featemb data check``: data of any size as shards on disk."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.cli import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featemb.datasets.shard_index import Index

_STEPS = {
    "parse": "first pass: parse",
    "count": "first pass: count",
    "plan": "vocabularies: plan",
    "merge": "vocabularies: merge",
    "rank": "vocabularies: rank",
    "fill": "second pass: ids",
    "check": "checksums",
}


def encode(
    names: list[str] = typer.Argument(
        ..., help="Registered data set, or paths of a table's files."
    ),
    out: Path = typer.Option(..., help="Folder for the shards."),
    root: Path | None = settings.ROOT,
    label: str | None = settings.LABEL,
    schema: Path | None = settings.SCHEMA,
    workers: int | None = typer.Option(None, min=1, help="Processes [one a processor]."),
    memory: str = typer.Option("4GiB", help="Most that all processes may hold, as 4GB."),
    hashed: bool = typer.Option(False, "--hash", help="Ids by a hash, without vocabularies."),
    hash_size: int | None = typer.Option(
        None, help="With --hash: ids of a feature, 0 among them [2^63 - 1: unbounded]."
    ),
    hash_seed: int = typer.Option(0, help="With --hash: its seed."),
    options: list[str] | None = typer.Option(
        None,
        "--set",
        help="An option of the data set, as --set chronological=true, or of the inference, as "
        "--set min_count=10 (repeatable).",
    ),
) -> None:
    """Encode data of any size into checksummed shards; killed, the same command goes on."""
    from featemb import datasets
    from featemb.errors import ConfigError

    hashing = datasets.Hashing(size=hash_size, seed=hash_seed) if hashed else None
    if hashing is None and (hash_size is not None or hash_seed):
        raise ConfigError("--hash-size and --hash-seed need --hash")
    given: dict[str, Any] = settings.given(root=root, label=label, schema=schema)
    with _progress() as report:
        index = datasets.encode(
            names[0] if len(names) == 1 else names,
            out,
            hashing=hashing,
            workers=workers,
            memory=memory,
            report=report,
            **given,
            **settings.model_settings(options),
        )
    typer.echo(_summary(index))


def check(folder: Path = typer.Argument(..., help="Folder of shards.")) -> None:
    """Read all shards of a folder, and compare their checksums."""
    from featemb.datasets.shard_index import read_index, verify

    index = read_index(folder)
    verify(index)
    size = sum(entry["bytes"] for entry in index.files().values())
    typer.echo(_summary(index))
    typer.echo(f"{len(index.files())} files of {size:,} bytes match their checksums")


def _summary(index: Index) -> str:
    rows = ", ".join(
        f"{part} {sum(shard.rows for shard in shards):,} in {len(shards)}"
        for part, shards in index.splits.items()
    )
    if index.schema.bounded:
        ids = f"{sum(index.schema.cardinalities):,} ids of {index.schema.num_features} features"
    else:
        ids = f"ids of {index.schema.num_features} features hashed to 63 bits"
    return f"{index.folder}: rows and shards: {rows}; {ids}; fingerprint {index.fingerprint[:16]}"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function that shows how far each step is, on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(_STEPS[step], total=total)
            progress.update(tasks[step], completed=done)

        yield report
