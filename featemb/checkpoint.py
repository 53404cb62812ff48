"""`Checkpoint`: all state of a training in one file, written atomically and read without pickle."""

from __future__ import annotations

import os
import pickle
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
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        everything = {"format": FORMAT, "model": model.state_dict(), "random": random, **state}
        with replacing(self.path) as temporary:
            torch.save(everything, temporary)

    def read(self, model: nn.Module) -> dict[str, Any] | None:
        """Load model and random state; return the rest, or None where there is no file.

        Raises:
            FormatError: the file is damaged, not a checkpoint, or of another model.
        """
        if not self.path.is_file():
            return None
        where = repr(os.fspath(self.path))
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise FormatError(f"{where} is not a readable checkpoint: {error}") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise FormatError(f"{where} is not a checkpoint of format {FORMAT}")
        try:
            model.load_state_dict(found.pop("model"))
        except (RuntimeError, KeyError) as error:
            raise FormatError(f"{where} is of another model: {error}") from error
        random = found.pop("random")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and torch.cuda.is_available():
            torch.cuda.set_rng_state(random["cuda"])
        return found
