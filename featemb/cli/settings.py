"""Options that ``train`` and ``bench`` share, and how their texts are read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featemb.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIM = typer.Option(None, help="Width of a feature [16].")
EPOCHS = typer.Option(None, help="Upper limit of the epochs of a training stage [10].")
BATCH_SIZE = typer.Option(None, help="Samples of a training step [1024].")
LR = typer.Option(None, help="Learning rate [0.001].")
WEIGHT_DECAY = typer.Option(None, help="L2 on embedding rows [0].")
OPTIMIZER = typer.Option(
    None,
    help="row_adam, row_adagrad, rowwise_adagrad, row_rmsprop, row_sgd or dense_adam [row_adam].",
)
KERNEL = typer.Option(None, help="What trains the rows: torch or fbgemm [torch].")
PATIENCE = typer.Option(None, help="Evaluations without a better validation AUC to stop at [2].")
ANNEAL = typer.Option(
    None,
    help="Share of a stage's epochs, at its end, in which the learning rate falls to zero [0].",
)
ROWS = typer.Option(None, help="Train on this many rows, drawn at random [all].")
DEVICE = typer.Option(None, help="cpu, cuda or cuda:<number> [cpu].")
THREADS = typer.Option(None, help="CPU threads of torch [torch's choice].")
CHECKPOINT = typer.Option(
    False,
    "--checkpoint/--no-checkpoint",
    help="Keep the state of a run after every evaluation, and go on from it after a kill.",
)
CHECKPOINT_MINUTES = typer.Option(
    None, help="Keep it every so many minutes too, within an epoch; includes --checkpoint."
)
KEEP_CHECKPOINTS = typer.Option(
    None, help="Checkpoints of a run that are kept [1]; includes --checkpoint."
)
SAVE_MODEL = typer.Option(
    False,
    "--save-model/--no-save-model",
    help="Keep the served model in the run's folder, for `featemb export`.",
)
SET = typer.Option(
    None, "--set", help="A setting of the model, as in TOML: --set 'hidden=[192]' (repeatable)."
)
LABEL = typer.Option(None, help="Label column of a table given as --data PATH.")
SCHEMA = typer.Option(None, help="Schema file of that table, as --save-schema writes it.")
ROOT = typer.Option(None, help="Folder of the data sets' original files [$FEATEMB_DATA].")


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def training(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of training that were given.

    Args:
        options: all options of a verb by name, its ``locals()``.
    """
    from featemb.benchmarks.paste import OPTIONS

    return given(**{name: options[name] for name in OPTIONS})


def checkpoints(wanted: bool, minutes: float | None, keep: int | None) -> dict[str, Any]:
    """Return the arguments of `featemb.benchmarks.run.run_one` on checkpoints.

    Raises:
        ConfigError: minutes or keep is out of range.
    """
    from featemb.checkpoint import Checkpoint

    found = given(checkpoint_minutes=minutes, keep_checkpoints=keep)
    Checkpoint("run.pt", minutes, 1 if keep is None else keep)  # refuses what is out of range
    return {"checkpoint": wanted or bool(found), **found}


@contextmanager
def ends_on_signal(options: Mapping[str, Any]) -> Iterator[None]:
    """With checkpoints, SIGTERM ends the runs inside behind a step, with its own exit code."""
    from featemb.benchmarks import stopping
    from featemb.errors import Stopped

    if not options["checkpoint"]:
        yield
        return
    try:
        with stopping.heard():
            yield
    except Stopped as stopped:
        typer.echo(f"stopped: {stopped}; start the same command again to go on", err=True)
        raise typer.Exit(stopping.EXIT) from stopped


def data_options(label: str | None, schema: Path | None, root: Path | None) -> dict[str, Any]:
    """Return the arguments of `featemb.datasets.load` that were given, as JSON-able values."""
    return given(label=label, schema=schema and str(schema), root=root and str(root))


def console(width: int = 120) -> Console:
    """Return where tables go; a pipe or a log has no width of its own, and 80 would cut them."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=width)


def model_settings(texts: list[str] | None) -> dict[str, Any]:
    """Read the texts of ``--set``.

    Raises:
        ConfigError: a text is not NAME=VALUE, or a value is not TOML.
    """
    settings = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set needs NAME=VALUE, got {text!r}")
        settings[name.strip()] = _value(value.strip(), text)
    return settings


def _value(value: str, text: str) -> Any:
    if value.replace("_", "").isalpha() and value not in ("true", "false"):
        return value  # a bare word is a text
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set {text!r}: the value is not TOML: {error}") from error
