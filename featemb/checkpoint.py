"""`Checkpoint`: all state of a training in one file, written atomically and read without pickle."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from featemb.errors import ConfigError, FormatError, StorageError
from featemb.files import replacing

FORMAT = 1


class Checkpoint:
    """A file of a model's state, torch's random state, and what the training loop adds.

    It is a torch file of tensors, numbers, texts and containers, and read as such: nothing in it
    is executed. Earlier ones lie beside it, ``<file>.1`` being the last but one.

    Args:
        path: the file; it need not exist.
        minutes: `featemb.fit` writes it this often within an epoch too; None: after evaluations
            and stages alone.
        keep: how many are kept. Where the newest cannot be read, training goes on from the one
            before it, with a warning.

    Raises:
        ConfigError: ``minutes`` or ``keep`` is out of range.
    """

    def __init__(
        self, path: str | os.PathLike[str], minutes: float | None = None, keep: int = 1
    ) -> None:
        self.path, self.minutes, self.keep = Path(path), minutes, keep
        if minutes is not None and not (_is_number(minutes) and 0 < minutes < math.inf):
            raise ConfigError(f"minutes between checkpoints must be a number > 0, got {minutes!r}")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ConfigError(f"the number of checkpoints to keep must be >= 1, got {keep!r}")
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write: ``minutes`` since the last time."""
        return self.minutes is not None and time.monotonic() - self._written >= 60 * self.minutes

    def files(self) -> list[Path]:
        """Return the files that are there, newest first."""
        older = self.path.parent.glob(f"{self.path.name}.*")
        numbered = [one for one in older if one.suffix[1:].isdigit()]
        found = [self.path, *sorted(numbered, key=lambda one: int(one.suffix[1:]))]
        return [one for one in found if one.exists()]

    def remove(self) -> None:
        """Remove the file and those kept beside it."""
        for file in self.files():
            file.unlink(missing_ok=True)

    def write(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Replace the file at once by the state as it is now.

        Raises:
            StorageError: the disk is full or not writable; the file is as it was.
            FormatError: its folder does not exist.
        """
        device = _cuda(model)
        random = {
            "cpu": torch.get_rng_state(),
            "cuda": None if device is None else torch.cuda.get_rng_state(device),
        }
        everything = {**state, "format": FORMAT, "model": model.state_dict(), "random": random}
        try:
            with replacing(self.path) as temporary:
                _write(everything, temporary)
                self._move_on()
        except OSError as error:
            raise StorageError(
                f"the checkpoint {os.fspath(self.path)!r} could not be written ({error}); "
                f"{_left(self.files())}"
            ) from error
        for file in self.files()[self.keep :]:
            file.unlink(missing_ok=True)
        self._written = time.monotonic()

    def _move_on(self) -> None:
        """Make the newest file the last but one, and so on; the newest stays where it is."""
        if self.keep == 1 or not self.path.exists():
            return
        for number in reversed(range(1, self.keep - 1)):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._older(number), self._older(number + 1))
        self._older(1).unlink(missing_ok=True)
        try:
            os.link(self.path, self._older(1))
        except OSError:  # some file systems have no links
            shutil.copyfile(self.path, self._older(1))

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def read(self) -> dict[str, Any] | None:
        """Return what the newest readable file holds, on the CPU; None where there is no file.

        Raises:
            FormatError: no file is readable, or its folder does not exist.
        """
        if not self.path.parent.is_dir():
            raise self.refused("cannot be written: its folder does not exist")
        first: FormatError | None = None
        for file in self.files():
            try:
                found = _read(file)
            except FormatError as error:
                first = first or error
                continue
            if first is not None:
                warnings.warn(f"{first}; going on from {os.fspath(file)!r}", stacklevel=2)
            return found
        if first is not None:
            raise first
        return None

    def restore(self, model: nn.Module, found: Mapping[str, Any]) -> None:
        """Set model and random state to those that were read.

        Raises:
            FormatError: the state is of another model.
        """
        try:
            model.load_state_dict(found["model"])
            torch.set_rng_state(found["random"]["cpu"])
            device = _cuda(model)
            if device is not None and found["random"]["cuda"] is not None:
                torch.cuda.set_rng_state(found["random"]["cuda"], device)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise self.refused(f"is of another model: {error}") from error

    def refused(self, why: str) -> FormatError:
        """Return the error that names the file."""
        return _refused(self.path, why)


def _refused(path: Path, why: str) -> FormatError:
    return FormatError(f"{os.fspath(path)!r} {why}")


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as file:  # torch does not check the sums it writes
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to hit
        raise _refused(path, f"is not a readable checkpoint: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _refused(path, f"is not a checkpoint of format {FORMAT}")
    return found


class _Watched:
    """A file that remembers why it could not be written: torch tells something else instead."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.error = file, None
        self.flush = file.flush

    error: OSError | None

    def write(self, data: bytes) -> int:
        """Write; note what went wrong."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _write(everything: Mapping[str, Any], path: Path) -> None:
    """Write a torch file.

    Raises:
        OSError: the disk is full or not writable.
    """
    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(everything, cast(IO[bytes], watched))
        except RuntimeError as error:
            if watched.error is None:
                raise
            raise watched.error from error


def _left(files: list[Path]) -> str:
    """What there is to go on from."""
    if not files:
        return "no earlier one is there: make space and begin again"
    return "the last one is still whole: make space and start the same again to go on from it"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cuda(model: nn.Module) -> torch.device | None:
    """Device of a model on CUDA."""
    device = next((parameter.device for parameter in model.parameters()), None)
    return device if device is not None and device.type == "cuda" else None
