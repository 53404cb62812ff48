"""The ``featemb`` command: one file a verb.

A verb's file defines ``register(app)`` and is found by itself. It imports what it needs inside of
its functions, so that ``featemb --help`` does not wait for the harness.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

import typer

from featemb.errors import FeatembError, StorageError

USAGE_ERROR = 2
NO_SPACE = 74  # EX_IOERR
INTERRUPTED = 130
_HELP = "Feature-embedding layers for recommender and CTR models, with every byte counted."


def build() -> typer.Typer:
    """Make the command with all verbs."""
    app = typer.Typer(
        name="featemb",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(help=_HELP)(_top)
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{__name__}.{found.name}")
        if hasattr(module, "register"):
            module.register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        import featemb

        typer.echo(f"featemb {featemb.__version__}")
        raise typer.Exit


def _top(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Show the version."
    ),
) -> None:
    """Options of the command itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a `FeatembError` becomes one line on stderr and exit code 2, or 74.

    74 says that a checkpoint or record could not be written (`featemb.StorageError`).

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    try:
        build()(args=None if arguments is None else list(arguments), prog_name="featemb")
    except FeatembError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NO_SPACE if isinstance(error, StorageError) else USAGE_ERROR)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
