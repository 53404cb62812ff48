"""`Loop`: what `featemb.fit` does, and the state that it goes through between two checkpoints."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn

from featemb import optim, staging
from featemb.checkpoint import Checkpoint
from featemb.errors import RunError
from featemb.evaluator import Scorer
from featemb.history import Batch, History, Place, Settings
from featemb.stage import Stage

Optimizers = list[torch.optim.Optimizer]


class Loop:
    """State of one `fit` call.

    Args:
        model: the model.
        settings: the call's arguments.
        checkpoint: where the state is written, and taken from if it is there already.

    Raises:
        RunError: a stage needs held-out batches that were not given.
        FormatError: the checkpoint is not one, or of another model or training.
    """

    def __init__(
        self, model: nn.Module, settings: Settings, checkpoint: Checkpoint | None = None
    ) -> None:
        self.model, self.settings, self.checkpoint = model, settings, checkpoint
        self.layers, self.stages = staging.layers(model), staging.stages(model)
        if settings.held_out is None and any(stage.held_out for stage in self.stages):
            raise RunError("a stage trains on held-out batches too: pass held_out=")
        self.scorer = Scorer(model, settings.evaluate)
        self.history, self.at = History(), Place()
        self.start: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.optimizers: Optimizers = []
        self.held_out: Optimizers = []
        self.states: list[dict[str, Any]] | None = None
        self.losses: list[Tensor] = []
        self.step_times: list[float] = []
        saved = None if checkpoint is None else checkpoint.read()
        if checkpoint is not None and saved is not None:
            self._resume(checkpoint, saved)
        elif staging.rewinds(model):
            self.start = copy.deepcopy(model.state_dict())
        self.began = time.perf_counter() - self.history.seconds

    def run(self) -> History:
        """Run all stages, or what is left of them; return the history."""
        for number, stage in enumerate(self.stages):
            if number >= self.at.stage:
                self._run(number, stage)
        self.model.eval()
        return self.history

    def _run(self, number: int, stage: Stage) -> None:
        """Run a stage, or what is left of it."""
        self.scorer.stage = stage
        if not self.at.step:
            staging.begin(self.model, stage, self.start)
        if stage.kind == "search":
            staging.search(self.model, stage, self.scorer)
        else:
            self._optimizers(stage)
            self._train(stage)
        self.at = Place(stage=number + 1, made=self.at.made)
        self._save()

    def _optimizers(self, stage: Stage) -> None:
        """Make the stage's optimizers, or go on with the last ones."""
        if not self.at.step and stage.optimizer == "new":
            self._make(self.at.stage)
        elif self.states is not None:
            self._make(self.at.made)
            self._load(self.states)
        elif not self.optimizers:
            self._make(self.at.stage)
        self.states = None

    def _make(self, number: int) -> None:
        """Make the optimizers of the stage of a number, of both splits."""
        settings, self.at.made = self.settings, number
        self.optimizers, self.held_out = (
            optim.build(
                self.model,
                settings.lr,
                settings.optimizer,
                settings.weight_decay,
                settings.net_weight_decay,
                stage=self.stages[number],
                split=split,
            )
            for split in ("train", "held_out")
        )

    def _load(self, states: list[dict[str, Any]]) -> None:
        """Load the optimizers' states.

        Raises:
            FormatError: they are of others.
        """
        try:
            for optimizer, state in zip((*self.optimizers, *self.held_out), states, strict=True):
                optimizer.load_state_dict(state)
        except (LookupError, TypeError, ValueError) as error:
            assert self.checkpoint is not None
            raise self.checkpoint.refused(f"is of another model: {error}") from error

    def _train(self, stage: Stage) -> None:
        """Run a training stage from where it is, and leave the best weights in the model."""
        settings, at = self.settings, self.at
        if not at.step:
            self.best = None
            self.history.best_score, self.history.best_epoch = None, 0
        self.model.train()
        held_out = islice(self._held_out(), at.step, None) if stage.held_out else None
        while self._goes_on(stage):
            skip, epoch = at.batch, at.epoch
            self._anneal(stage)
            for number, batch in enumerate(settings.batches(epoch), start=1):
                if number <= skip:
                    continue
                at.step, at.batch = at.step + 1, number
                self._step(batch, None if held_out is None else next(held_out))
                if settings.eval_every and at.step % settings.eval_every == 0:
                    self._judge(stage)
                    if not self._goes_on(stage):
                        break
            else:
                if self.losses:
                    self._judge(stage, epoch_ends=True)
                at.epoch, at.batch = epoch + 1, 0
        self.history.stopped_early = not self._annealing(stage) and at.stale >= settings.patience
        self.history.steps += at.step
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.best = None

    def _annealing(self, stage: Stage) -> int:
        """Return how many epochs at the end of a stage the learning rates fall."""
        return round(self.settings.anneal * self._epochs(stage))

    def _epochs(self, stage: Stage) -> int:
        return stage.epochs or self.settings.epochs

    def _goes_on(self, stage: Stage) -> bool:
        """Whether there is another epoch; a stage that stops early still anneals."""
        at, falling = self.at, self._annealing(stage)
        latest = self._epochs(stage) - falling
        if not falling:
            return at.epoch < latest and at.stale < self.settings.patience
        if at.anneal_from is None and (at.epoch >= latest or at.stale >= self.settings.patience):
            at.anneal_from = at.epoch + bool(at.batch)
        return at.anneal_from is None or at.epoch < at.anneal_from + falling

    def _anneal(self, stage: Stage) -> None:
        """Set the learning rates of an epoch: those of the optimizers' making, times a step."""
        falling = self._annealing(stage)
        if not falling:
            return
        begun = self.at.anneal_from
        factor = 1.0 if begun is None else 1 - (self.at.epoch - begun + 0.5) / falling
        for group in (g for one in self.optimizers for g in one.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * min(factor, 1.0)

    def _held_out(self) -> Iterator[Batch]:
        """Go over the held-out batches again and again.

        Raises:
            RunError: there are none.
        """
        assert self.settings.held_out is not None
        for epoch in count():
            number = 0
            for number, batch in enumerate(self.settings.held_out(epoch), start=1):  # noqa: B007
                yield batch
            if not number:
                raise RunError("held_out gives no batches")

    def _step(self, batch: Batch, held_out: Batch | None) -> None:
        began = time.perf_counter()
        self.losses.append(self._update(batch, self.optimizers))
        if held_out is not None:
            self._update(held_out, self.held_out)
        for layer in self.layers:
            layer.after_step(self.at.step)
        self.step_times.append(time.perf_counter() - began)

    def _update(self, batch: Batch, optimizers: Optimizers) -> Tensor:
        return staging.update(self.model, self.layers, batch, optimizers)

    def _judge(self, stage: Stage, epoch_ends: bool = False) -> None:
        """Record an evaluation, keep the best weights, decay the learning rates, save."""
        at, history = self.at, self.history
        where = f"stage {stage.name!r}, epoch {at.epoch + 1}"
        train_loss = float(torch.stack(self.losses).mean())
        self.losses.clear()
        if not math.isfinite(train_loss):
            raise RunError(f"the loss is {train_loss} in {where}")
        score = None if self.settings.evaluate is None else self.scorer()
        if score is not None and math.isnan(score):
            raise RunError(f"the score is nan in {where}")
        record = {
            "stage": stage.name,
            "epoch": at.epoch + 1,
            "step": at.step,
            "seconds": time.perf_counter() - self.began,
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

    def _save(self, epoch_ends: bool = False) -> None:
        """Bring the history's times up to date, and write all state to the checkpoint."""
        history = self.history
        history.seconds = time.perf_counter() - self.began
        history.evaluate_seconds += self.scorer.seconds
        self.scorer.seconds = 0.0
        if self.step_times:
            history.step_seconds = statistics.median(self.step_times)
        if self.checkpoint is None:
            return
        end = {"epoch": self.at.epoch + 1, "batch": 0} if epoch_ends else {}
        states = [one.state_dict() for one in (*self.optimizers, *self.held_out)]
        state = {
            "settings": self.settings.fixed(),
            "stages": [stage.name for stage in self.stages],
            "at": asdict(self.at) | end,
            "history": asdict(history),
            "start": self.start,
            "best": self.best,
            "optimizers": states or self.states,
        }
        self.checkpoint.write(self.model, state)

    def _resume(self, checkpoint: Checkpoint, saved: dict[str, Any]) -> None:
        """Take the state of a checkpoint; the model is untouched where it is refused.

        Raises:
            FormatError: it is of another model or training.
        """
        try:
            asked = {"stages": [stage.name for stage in self.stages]} | self.settings.fixed()
            found = {"stages": saved["stages"]} | saved["settings"]
            self.at, self.history = Place(**saved["at"]), History(**saved["history"])
            self.start, self.best, self.states = (
                saved[name] for name in ("start", "best", "optimizers")
            )
        except (LookupError, TypeError) as error:
            raise checkpoint.refused(f"is not a checkpoint of featemb.fit: {error}") from error
        for name, value in asked.items():
            if found.get(name) != value:
                was = f"{name} was {found.get(name)!r} and is {value!r} now"
                raise checkpoint.refused(f"is of another training: {was}")
        checkpoint.restore(self.model, saved)
        if self.settings.on_record is not None:
            for record in self.history.records:
                self.settings.on_record(record)
