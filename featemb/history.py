"""What a training is told, and what it tells: arguments, place and history of `featemb.fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from featemb.errors import ConfigError
from featemb.stage import Stage


class Batch(Protocol):
    """What the loop needs of a batch."""

    @property
    def ids(self) -> Any:
        """Ids as the layer takes them."""

    @property
    def numeric(self) -> Tensor | None:
        """Float ``[B, M]``, or None."""

    @property
    def label(self) -> Tensor:
        """Float ``[B]`` in {0, 1}."""


Batches = Callable[[int], Iterable[Batch]]


@dataclass
class History:
    """What `fit` did.

    Attributes:
        records: one dict an evaluation: stage, epoch, step, seconds, train_loss, score.
        step_seconds: median time of a training step.
        seconds: time in all, evaluations and what came before an interruption included.
        evaluate_seconds: that of evaluations.
        best_score: best validation score, of the weights that the model now has.
        best_epoch: its epoch in the last training stage, from 1.
        stopped_early: whether patience ran out in the last training stage.
        steps: optimizer steps in all.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: float = 0.0
    seconds: float = 0.0
    evaluate_seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    stopped_early: bool = False
    steps: int = 0


@dataclass
class Place:
    """Where a training is: before a stage (step 0), or behind a step inside of it.

    Attributes:
        stage: number of the stage.
        epoch: number of the epoch in it.
        batch: batches of the epoch that are done.
        step: steps of the stage that are done.
        stale: evaluations in a row without a better score.
        made: number of the stage that made the optimizers.
        anneal_from: epoch from which the learning rates fall to zero, None before the stage.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    stale: int = 0
    made: int = 0
    anneal_from: int | None = None


@dataclass(frozen=True)
class Settings:
    """Arguments of `fit` that its loop needs."""

    batches: Batches
    evaluate: Callable[[], float] | None
    held_out: Batches | None
    epochs: int
    lr: float
    weight_decay: float
    net_weight_decay: float
    optimizer: str
    patience: int
    lr_decay: float
    eval_every: int | None
    on_record: Callable[[dict[str, Any]], None] | None
    anneal: float = 0.0
    stop: Callable[[], bool] | None = None
    kernel: str = "torch"

    def fixed(self) -> dict[str, Any]:
        """Return those that must be the same where a training goes on."""
        return {name: getattr(self, name) for name in _FIXED}

    def limit(self, stage: Stage) -> int:
        """Return the upper limit of a stage's epochs."""
        return stage.epochs or self.epochs

    def falling(self, stage: Stage) -> int:
        """Return how many epochs at the end of a stage the learning rates fall."""
        return round(self.anneal * self.limit(stage))


_FIXED = (
    *("lr", "weight_decay", "net_weight_decay", "optimizer"),
    *("patience", "lr_decay", "eval_every", "anneal", "kernel"),
)


def check_anneal(anneal: float, lr_decay: float) -> None:
    """Refuse an annealing that is no share, or that plateaus would change.

    Raises:
        ConfigError: names the setting and the value.
    """
    if isinstance(anneal, bool) or not isinstance(anneal, (int, float)) or not 0 <= anneal < 1:
        raise ConfigError(f"anneal must be a share of the epochs, 0 <= anneal < 1, got {anneal!r}")
    if anneal and lr_decay != 1:
        raise ConfigError(f"give anneal or lr_decay, not both: got {anneal=} and {lr_decay=}")
