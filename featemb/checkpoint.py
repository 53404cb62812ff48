"""`Checkpoint`: all state of a training in one file, written atomically and read without pickle."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featemb.errors import FormatError
from featemb.files import replacing

FORMAT = 1


class Checkpoint:
    """A file of a model's state, torch's random state, and what the training loop adds.

    It is a torch file of tensors, numbers, texts and containers, and read as such: nothing in it
    is executed.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Replace the file at once by the state as it is now."""
        device = _cuda(model)
        random = {
            "cpu": torch.get_rng_state(),
            "cuda": None if device is None else torch.cuda.get_rng_state(device),
        }
        everything = {**state, "format": FORMAT, "model": model.state_dict(), "random": random}
        with replacing(self.path) as temporary:
            torch.save(everything, temporary)

    def read(self) -> dict[str, Any] | None:
        """Return what the file holds, on the CPU; None where there is no file.

        Raises:
            FormatError: the file is damaged or not a checkpoint, or its folder does not exist.
        """
        if not self.path.parent.is_dir():
            raise self.refused("cannot be written: its folder does not exist")
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as file:  # torch does not check the sums it writes
                damaged = file.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} does not match its checksum")
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes raise whatever they happen to hit
            raise self.refused(f"is not a readable checkpoint: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise self.refused(f"is not a checkpoint of format {FORMAT}")
        return found

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
        return FormatError(f"{os.fspath(self.path)!r} {why}")


def _cuda(model: nn.Module) -> torch.device | None:
    """Device of a model on CUDA."""
    device = next((parameter.device for parameter in model.parameters()), None)
    return device if device is not None and device.type == "cuda" else None
