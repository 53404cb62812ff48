"""`Stage`: one stage of a method's training, as data for the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """One stage of a method's training.

    Attributes:
        name: shown in records; unique within a layer.
        kind: "train" runs epochs; "search" calls the layer's ``search``.
        weights: "keep" continues; "initial" first rewinds the whole model to its start, except the
            tensors that the layer names in its ``architecture`` (masks, dimensions).
        epochs: upper limit for this stage; None takes the run's.
        optimizer: "new" starts with fresh state; "keep" goes on with the last training stage's.
        held_out: whether every training step is followed by one on a held-out batch, which updates
            the parameter groups of split "held_out" alone.
        network: whether the parameters outside the embedding layers are trained.
    """

    name: str
    kind: Literal["train", "search"] = "train"
    weights: Literal["keep", "initial"] = "keep"
    epochs: int | None = None
    optimizer: Literal["new", "keep"] = "new"
    held_out: bool = False
    network: bool = True
