"""`Loop`: what `featemb.fit` does, and the state that it goes through between two checkpoints."""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from featemb import staging, steppers
from featemb.checkpoint import Checkpoint
from featemb.errors import RunError, Stopped
from featemb.evaluator import Scorer
from featemb.finite import Losses
from featemb.history import Batch, History, Place, Settings
from featemb.reading import endless, guarded, skipped
from featemb.saving import Saver
from featemb.stage import Stage

Optimizers = list[torch.optim.Optimizer]
_LOOK_EVERY = 100  # steps between two looks at the losses: a look waits for the device


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
        self,
        model: nn.Module,
        settings: Settings,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.saver = Saver(model, checkpoint)
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
        self.losses = Losses(model)
        self.facts: dict[str, Any] | None = None  # of the last step, where it was before a resume
        self.step_times: list[float] = []
        if not self._resume() and staging.rewinds(model):
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
        stage, self.at.made = self.stages[number], number
        self.optimizers, self.held_out = (
            steppers.make(self.model, self.settings, stage, split)
            for split in ("train", "held_out")
        )

    def _load(self, states: list[dict[str, Any]]) -> None:
        """Load the optimizers' states.

        Raises:
            FormatError: they are of others.
        """
        try:
            steppers.load((*self.optimizers, *self.held_out), states)
        except (LookupError, TypeError, ValueError) as error:
            raise self.saver.refused("is of another model", error) from error

    def _train(self, stage: Stage) -> None:
        """Run a training stage from where it is, and leave the best weights in the model."""
        settings, at = self.settings, self.at
        if not at.step:
            self.best = None
            self.history.best_score, self.history.best_epoch = None, 0
        self.model.train()
        held_out = endless(settings.held_out, at.step) if stage.held_out else None
        if self.losses.values and self._evaluation_due():  # it was interrupted
            self._judge(stage)
        while self._goes_on(stage):
            self._anneal(stage)
            if self._epoch(stage, held_out):
                if self.losses.values:
                    self._judge(stage, epoch_ends=True)
                at.epoch, at.batch = at.epoch + 1, 0
                self._stop_if_asked()
        self.history.stopped_early = (
            not self.settings.falling(stage) and at.stale >= settings.patience
        )
        self.history.steps += at.step
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.best = None

    def _epoch(self, stage: Stage, held_out: Iterator[Batch] | None) -> bool:
        """Go through an epoch from where it is; return whether its end was reached."""
        at = self.at
        found, _ = skipped(self.settings.batches(at.epoch), at.batch)
        for batch in guarded(found, self._save_step):
            at.step, at.batch = at.step + 1, at.batch + 1
            self._step(batch, None if held_out is None else next(held_out))
            if self._evaluation_due():
                self._judge(stage)
                if not self._goes_on(stage):
                    return False
            elif at.step % _LOOK_EVERY == 0:
                self._look()
            if self.saver.due():
                self._save()
            self._stop_if_asked()
        return True

    def _evaluation_due(self) -> bool:
        return bool(self.settings.eval_every) and not self.at.step % (self.settings.eval_every or 1)

    def _stop_if_asked(self) -> None:
        if self.settings.stop is not None and self.settings.stop():
            self._save_step()
            raise Stopped(f"behind step {self.at.step} of {self._where()}, as asked")

    def _save_step(self) -> None:
        """Save behind the step at hand, unless that is done already."""
        if self.at.step and not self.saver.has(self.at):
            self._save()

    def _look(self) -> None:
        """Look at the losses since the last look.

        Raises:
            RunError: one of them is not finite.
        """
        bad = self.losses.first_bad()
        if bad is not None:
            where = f"{self._where()}, step {self.at.step - bad[0]}"
            raise RunError(f"the loss is {bad[1]} in {where}{self.saver.kept()}")

    def _where(self) -> str:
        return f"stage {self.stages[self.at.stage].name!r}, epoch {self.at.epoch + 1}"

    def _goes_on(self, stage: Stage) -> bool:
        """Whether there is another epoch; a stage that stops early still anneals."""
        at, falling = self.at, self.settings.falling(stage)
        latest = self.settings.limit(stage) - falling
        if not falling:
            return at.epoch < latest and at.stale < self.settings.patience
        if at.anneal_from is None and (at.epoch >= latest or at.stale >= self.settings.patience):
            at.anneal_from = at.epoch + bool(at.batch)
        return at.anneal_from is None or at.epoch < at.anneal_from + falling

    def _anneal(self, stage: Stage) -> None:
        """Set the learning rates of an epoch, where they fall at the end of the stage."""
        falling = self.settings.falling(stage)
        if falling:
            steppers.fall(self.optimizers, self.at.epoch, self.at.anneal_from, falling)

    def _step(self, batch: Batch, held_out: Batch | None) -> None:
        began, self.facts = time.perf_counter(), None
        self.losses.values.append(staging.update(self.model, self.layers, batch, self.optimizers))
        if held_out is not None:
            staging.update(self.model, self.layers, held_out, self.held_out)
        for layer in self.layers:
            layer.after_step(self.at.step)
        self.step_times.append(time.perf_counter() - began)

    def _judge(self, stage: Stage, epoch_ends: bool = False) -> None:
        """Record an evaluation, keep the best weights, decay the learning rates, save."""
        at, history = self.at, self.history
        self._look()
        train_loss = self.losses.mean()
        self.facts = self.scorer.describe() if self.facts is None else self.facts
        try:
            score = None if self.settings.evaluate is None else self.scorer()
        except Stopped:
            self._save_step()
            raise
        if score is not None and math.isnan(score):
            raise RunError(f"the score is nan in {self._where()}")
        self.losses.clear()
        record = {
            "stage": stage.name,
            "epoch": at.epoch + 1,
            "step": at.step,
            "seconds": time.perf_counter() - self.began,
            "train_loss": train_loss,
            "score": score,
            **self.facts,
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
            steppers.decay(self.optimizers, self.settings.lr_decay)
        self._save(epoch_ends)

    def _save(self, epoch_ends: bool = False) -> None:
        """Bring the history's times up to date, and write all state to the checkpoint.

        Raises:
            RunError: a loss or a weight is not finite; the last checkpoint is as it was.
        """
        history = self.history
        history.seconds = time.perf_counter() - self.began
        history.evaluate_seconds += self.scorer.seconds
        self.scorer.seconds = 0.0
        if self.step_times:
            history.step_seconds = statistics.median(self.step_times)
        self._look()
        end = {"epoch": self.at.epoch + 1, "batch": 0} if epoch_ends else {}
        states = [one.state_dict() for one in (*self.optimizers, *self.held_out)]
        state = {
            "settings": self.settings.fixed(),
            "stages": [stage.name for stage in self.stages],
            "history": asdict(history),
            "start": self.start,
            "best": self.best,
            "optimizers": states or self.states,
            "losses": self.losses.state(),
            "facts": self.facts or (self.scorer.describe() if self.losses.values else None),
        }
        self.saver.write(self.at, end, state)

    def _resume(self) -> bool:
        """Take the state of the checkpoint, if there is one; a refused one changes no weight.

        Raises:
            FormatError: it is of another model or training.
        """
        stages = [stage.name for stage in self.stages]
        saved = self.saver.read({"stages": stages} | self.settings.fixed())
        if saved is None:
            return False
        try:
            self.at, self.history = Place(**saved["at"]), History(**saved["history"])
            self.start, self.best, self.states = (
                saved[name] for name in ("start", "best", "optimizers")
            )
            self.losses.restore(saved.get("losses"))
            self.facts = saved.get("facts")
        except (LookupError, TypeError, AttributeError) as error:
            raise self.saver.refused("is not a checkpoint of featemb.fit", error) from error
        self.saver.restore(self.at, saved)
        if self.settings.on_record is not None:
            for record in self.history.records:
                self.settings.on_record(record)
        return True
