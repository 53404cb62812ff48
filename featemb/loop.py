"""The state of a training: what `featemb.fit` goes through between two checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from featemb import staging
from featemb.checkpoint import Checkpoint
from featemb.errors import RunError
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
        best_score: best validation score, of the weights that the model now has.
        best_epoch: its epoch in the last training stage, from 1.
        stopped_early: whether patience ran out in the last training stage.
        steps: optimizer steps in all.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    stopped_early: bool = False
    steps: int = 0


@dataclass(frozen=True)
class Settings:
    """Arguments of `fit` that its loop needs."""

    batches: Batches
    held_out: Batches | None
    evaluate: Callable[[], float] | None
    epochs: int
    patience: int
    lr_decay: float
    eval_every: int | None
    on_record: Callable[[dict[str, Any]], None] | None


@dataclass
class Place:
    """Where a training is: before a stage (step 0), or behind an evaluation inside of it."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    stale: int = 0


class Loop:
    """State of one `fit` call."""

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        make: Callable[[Stage, str], list[torch.optim.Optimizer]],
        checkpoint: Checkpoint | None,
    ) -> None:
        self.model, self.settings, self.make, self.checkpoint = model, settings, make, checkpoint
        self.layers = staging.layers(model)
        self.history = History()
        self.at = Place()
        self.start: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.held_out: list[torch.optim.Optimizer] = []
        self.states: list[dict[str, Any]] | None = None
        self.losses: list[Tensor] = []
        self.step_times: list[float] = []
        self.before = 0.0
        self.began = time.perf_counter()
        saved = None if checkpoint is None else checkpoint.read(model)
        if saved is not None:
            self._resume(saved)
        elif staging.rewinds(model):
            self.start = copy.deepcopy(model.state_dict())

    def run(self, number: int, stage: Stage) -> None:
        """Run a stage, or what is left of it."""
        if not self.at.step:
            staging.begin(self.model, stage, self.start)
        if stage.kind == "search":
            staging.search(self.model, stage, self._scorer(stage))
        else:
            self._optimizers(stage)
            self._train(stage)
        self.at = Place(number + 1)
        self._save()

    def _optimizers(self, stage: Stage) -> None:
        """Make the stage's optimizers, or keep the last ones; a checkpoint's state is loaded."""
        if not self.optimizers or (stage.optimizer == "new" and not self.at.step):
            self.optimizers = self.make(stage, "train")
            self.held_out = self.make(stage, "held_out") if stage.held_out else []
            if self.states is not None and (self.at.step or stage.optimizer == "keep"):
                both = (*self.optimizers, *self.held_out)
                for optimizer, state in zip(both, self.states, strict=True):
                    optimizer.load_state_dict(state)
        self.states = None

    def _train(self, stage: Stage) -> None:
        """Run a training stage from where it is, and leave the best weights in the model."""
        settings, at = self.settings, self.at
        if not at.step:
            self.best = None
            self.history.best_score, self.history.stopped_early = None, False
        self.model.train()
        held_out = self._held_out(at.step) if stage.held_out else None
        for epoch in range(at.epoch, stage.epochs or settings.epochs):
            if at.step and at.stale >= settings.patience:
                self.history.stopped_early = True
                break
            skip, at.epoch = at.batch, epoch
            for number, batch in enumerate(settings.batches(epoch), start=1):
                if number <= skip:
                    continue
                at.step, at.batch = at.step + 1, number
                self._step(batch, None if held_out is None else next(held_out))
                if settings.eval_every and at.step % settings.eval_every == 0:
                    self._judge(stage)
                    if at.stale >= settings.patience:
                        break
            else:
                if self.losses:
                    self._judge(stage, epoch_ends=True)
                at.epoch, at.batch = epoch + 1, 0
        self.history.stopped_early = at.stale >= settings.patience
        self.history.steps += at.step
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.best = None

    def _held_out(self, steps: int) -> Iterator[Batch]:
        """Go over the held-out batches again and again, from the place after so many steps."""
        assert self.settings.held_out is not None
        endless = (b for epoch in count() for b in self.settings.held_out(epoch))
        return islice(endless, steps, None)

    def _step(self, batch: Batch, held_out: Batch | None) -> None:
        began = time.perf_counter()
        self.losses.append(self._update(batch, self.optimizers))
        if held_out is not None:
            self._update(held_out, self.held_out)
        for layer in self.layers:
            layer.after_step(self.at.step)
        self.step_times.append(time.perf_counter() - began)

    def _update(self, batch: Batch, optimizers: list[torch.optim.Optimizer]) -> Tensor:
        """Make one step of some optimizers on a batch; return the data loss."""
        inputs = (batch.ids,) if batch.numeric is None else (batch.ids, batch.numeric)
        loss = binary_cross_entropy_with_logits(self.model(*inputs), batch.label)
        total = loss + sum(layer.penalty() for layer in self.layers)
        self.model.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        for layer in self.layers:
            layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    def _judge(self, stage: Stage, epoch_ends: bool = False) -> None:
        """Record an evaluation, keep the best weights, decay the learning rates, save."""
        at, history = self.at, self.history
        where = f"stage {stage.name!r}, epoch {at.epoch + 1}"
        train_loss = float(torch.stack(self.losses).mean())
        self.losses.clear()
        if not math.isfinite(train_loss):
            raise RunError(f"the loss is {train_loss} in {where}")
        score = None if self.settings.evaluate is None else self._scorer(stage)()
        if score is not None and math.isnan(score):
            raise RunError(f"the score is nan in {where}")
        record = {
            "stage": stage.name,
            "epoch": at.epoch + 1,
            "step": at.step,
            "seconds": self._seconds(),
            "train_loss": train_loss,
            "score": score,
        }
        history.records.append(record)
        if self.settings.on_record is not None:
            self.settings.on_record(record)
        if score is None or history.best_score is None or score > history.best_score:
            at.stale = 0
            history.best_score, history.best_epoch = score, at.epoch + 1
            self.best = None if score is None else copy.deepcopy(self.model.state_dict())
        else:
            at.stale += 1
            for group in (g for one in self.optimizers for g in one.param_groups):
                group["lr"] *= self.settings.lr_decay
        self._save(epoch_ends)

    def _scorer(self, stage: Stage) -> Scorer:
        return Scorer(self.model, self.settings.evaluate, stage)

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _save(self, epoch_ends: bool = False) -> None:
        """Write all state to the checkpoint."""
        if self.checkpoint is None:
            return
        at = asdict(self.at)
        if epoch_ends:
            at |= {"epoch": self.at.epoch + 1, "batch": 0}
        both = (*self.optimizers, *self.held_out)
        self.checkpoint.write(
            self.model,
            {
                "at": at,
                "history": asdict(self.history),
                "seconds": self._seconds(),
                "start": self.start,
                "best": self.best,
                "optimizers": [optimizer.state_dict() for optimizer in both],
            },
        )

    def _resume(self, saved: dict[str, Any]) -> None:
        self.at, self.history = Place(**saved["at"]), History(**saved["history"])
        self.before, self.start, self.best = saved["seconds"], saved["start"], saved["best"]
        self.states = saved["optimizers"]
        if self.settings.on_record is not None:
            for record in self.history.records:
                self.settings.on_record(record)


class Scorer:
    """``evaluate`` in eval mode without gradients; the model's mode is as before."""

    def __init__(
        self, model: nn.Module, evaluate: Callable[[], float] | None, stage: Stage
    ) -> None:
        self.model, self.evaluate, self.stage = model, evaluate, stage
        variants = getattr(evaluate, "variants", None)
        if variants is not None:
            self.variants = lambda number: self._call(lambda: variants(number))

    def __call__(self) -> float:
        """Score the model as it stands."""
        if self.evaluate is None:
            raise RunError(f"stage {self.stage.name!r} searches and needs an evaluate function")
        return float(self._call(self.evaluate))

    def _call(self, evaluate: Callable[[], Any]) -> Any:
        training = self.model.training
        if training:
            self.model.eval()
        with torch.no_grad():
            found = evaluate()
        if training:
            self.model.train()
        return found
