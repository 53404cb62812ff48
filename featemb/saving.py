"""`Saver`: when a training's state is written, and which one training goes on from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from featemb.checkpoint import Checkpoint
from featemb.errors import RunError
from featemb.finite import bad_weight
from featemb.history import Place


class Saver:
    """Writes and reads the checkpoint of a training, where there is one.

    Args:
        model: the model.
        checkpoint: the file, or None.
    """

    def __init__(
        self, model: nn.Module, checkpoint: str | os.PathLike[str] | Checkpoint | None
    ) -> None:
        if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint(checkpoint)
        self.model, self.checkpoint = model, checkpoint
        self._saved: tuple[int, int] | None = None

    def due(self) -> bool:
        """Whether it is time to write within an epoch."""
        return self.checkpoint is not None and self.checkpoint.due()

    def has(self, place: Place) -> bool:
        """Whether the last checkpoint is of the same step."""
        return self._saved == (place.stage, place.step)

    def kept(self) -> str:
        """What an error says of the checkpoint that is left."""
        if self._saved is None:
            return ""
        return f"; the checkpoint of step {self._saved[1]} of stage {self._saved[0] + 1} is kept"

    def write(self, place: Place, end: Mapping[str, int], state: Mapping[str, Any]) -> None:
        """Write the state.

        Args:
            place: where training is.
            end: what the checkpoint says of the place instead.
            state: what training adds to the model's state.

        Raises:
            RunError: a weight is not finite; the last checkpoint is as it was.
            StorageError: the file cannot be written; the last one is as it was.
        """
        if self.checkpoint is None:
            return
        bad = bad_weight(self.model)
        if bad is not None:
            raise RunError(f"{bad} is not finite after step {place.step}{self.kept()}")
        self.checkpoint.write(self.model, {**state, "at": asdict(place) | dict(end)})
        self._saved = (place.stage, place.step)

    def read(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state of the checkpoint; the model is untouched.

        Args:
            asked: what must be as it was, the settings and names of stages.

        Raises:
            FormatError: it is not one, or of another training.
        """
        saved = None if self.checkpoint is None else self.checkpoint.read()
        if self.checkpoint is None or saved is None:
            return None
        found = saved.get("settings")
        if not isinstance(found, dict) or "stages" not in saved:
            raise self.checkpoint.refused("is not a checkpoint of featemb.fit")
        # there was one kernel only when the first checkpoints were written
        found = {"kernel": "torch"} | found | {"stages": saved["stages"]}
        for name, value in asked.items():
            if found.get(name) != value:
                was = f"{name} was {found.get(name)!r} and is {value!r} now"
                raise self.checkpoint.refused(f"is of another training: {was}")
        return saved

    def restore(self, place: Place, saved: Mapping[str, Any]) -> None:
        """Set model and random state to those that were read.

        Raises:
            FormatError: they are of another model.
        """
        assert self.checkpoint is not None
        self.checkpoint.restore(self.model, saved)
        self._saved = (place.stage, place.step)

    def refused(self, why: str, error: BaseException) -> Exception:
        """Return the error that names the file."""
        assert self.checkpoint is not None
        return self.checkpoint.refused(f"{why}: {error}")
