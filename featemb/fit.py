"""`fit`: the one reference loop over stages and hooks. It names no method.

Users may write their own: the contract checks train by one of ten lines.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from featemb import optim
from featemb.errors import RunError
from featemb.layer import FeatureEmbedding, Stage


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


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    evaluate: Callable[[], float] | None = None,
    *,
    epochs: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    net_weight_decay: float = 0.0,
    optimizer: str = "row_adam",
    patience: int = 2,
    lr_decay: float = 1.0,
    eval_every: int | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train a model through all stages of its embedding layers, by binary cross-entropy.

    Args:
        model: called as ``model(ids)`` or ``model(ids, numeric)``, gives logits ``[B]``; holds
            at least one `featemb.FeatureEmbedding`.
        batches: epoch number from 0 -> the batches of that epoch.
        evaluate: score of the model as it stands, higher is better; called in eval mode. With it,
            training stops early and the best weights are restored.
        epochs: upper limit of each training stage (a stage may set its own).
        lr: learning rate.
        weight_decay: L2 on embedding rows (see `featemb.optim`).
        net_weight_decay: L2 on the other parameters.
        optimizer: name as in `featemb.optim.build`.
        patience: stop after this many evaluations in a row without a better score.
        lr_decay: learning rates are multiplied by this after an evaluation without a better
            score (reduce on plateau; BARS uses 0.1).
        eval_every: steps between evaluations; None evaluates after every epoch.
        on_record: called with every new record of the history.

    Raises:
        RunError: the model holds no embedding layer, or the loss is not finite.
    """
    layers = [module for module in model.modules() if isinstance(module, FeatureEmbedding)]
    if not layers:
        raise RunError("the model holds no featemb.FeatureEmbedding, there is nothing to fit")
    loop = _Loop(model, layers, batches, evaluate, patience, lr_decay, eval_every, on_record)
    start = copy.deepcopy(model.state_dict()) if _rewinds(layers[0]) else None
    for stage in layers[0].stages():
        if stage.weights == "initial" and start is not None:
            model.load_state_dict(start)
        for layer in layers:
            layer.begin_stage(stage)
        if stage.kind == "search":
            if evaluate is None:
                raise RunError(f"stage {stage.name!r} searches and needs an evaluate function")
            for layer in layers:
                layer.search(stage, loop.score)
        else:
            optimizers = optim.build(model, lr, optimizer, weight_decay, net_weight_decay)
            loop.train(stage, stage.epochs or epochs, optimizers)
    model.eval()
    loop.history.step_seconds = statistics.median(loop.step_times) if loop.step_times else 0.0
    return loop.history


def _rewinds(layer: FeatureEmbedding) -> bool:
    return any(stage.weights == "initial" for stage in layer.stages())


class _Loop:
    """State of one `fit` call."""

    def __init__(
        self,
        model: nn.Module,
        layers: list[FeatureEmbedding],
        batches: Callable[[int], Iterable[Batch]],
        evaluate: Callable[[], float] | None,
        patience: int,
        lr_decay: float,
        eval_every: int | None,
        on_record: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.layers, self.batches, self.evaluate = model, layers, batches, evaluate
        self.patience, self.lr_decay = patience, lr_decay
        self.eval_every, self.on_record = eval_every, on_record
        self.history = History()
        self.step_times: list[float] = []
        self.began = time.perf_counter()

    def score(self) -> float:
        """Evaluate in eval mode without gradients, and go back to training."""
        assert self.evaluate is not None
        self.model.eval()
        with torch.no_grad():
            score = float(self.evaluate())
        self.model.train()
        return score

    def train(self, stage: Stage, epochs: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Run one training stage and leave the best weights in the model."""
        best: dict[str, Tensor] | None = None
        history, stale, step = self.history, 0, 0
        history.best_score, history.stopped_early = None, False
        self.model.train()
        for epoch in range(epochs):
            losses: list[Tensor] = []
            for batch in self.batches(epoch):
                step += 1
                losses.append(self._step(batch, step, optimizers))
                if self.eval_every and step % self.eval_every == 0:
                    best, stale = self._judge(stage, epoch, step, losses, best, stale)
                    self._decay(optimizers, stale)
                    if stale >= self.patience:
                        break
            if losses:
                best, stale = self._judge(stage, epoch, step, losses, best, stale)
                self._decay(optimizers, stale)
            if stale >= self.patience:
                history.stopped_early = True
                break
        history.steps += step
        if best is not None:
            self.model.load_state_dict(best)

    def _decay(self, optimizers: list[torch.optim.Optimizer], stale: int) -> None:
        for group in (group for one in optimizers for group in one.param_groups if stale):
            group["lr"] *= self.lr_decay

    def _step(self, batch: Batch, step: int, optimizers: list[torch.optim.Optimizer]) -> Tensor:
        began = time.perf_counter()
        inputs = (batch.ids,) if batch.numeric is None else (batch.ids, batch.numeric)
        loss = binary_cross_entropy_with_logits(self.model(*inputs), batch.label)
        total = loss + sum(layer.penalty() for layer in self.layers)
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        for layer in self.layers:
            layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        for layer in self.layers:
            layer.after_step(step)
        self.step_times.append(time.perf_counter() - began)
        return loss.detach()

    def _judge(
        self,
        stage: Stage,
        epoch: int,
        step: int,
        losses: list[Tensor],
        best: dict[str, Tensor] | None,
        stale: int,
    ) -> tuple[dict[str, Tensor] | None, int]:
        """Record an evaluation; return the best weights and evaluations without progress."""
        train_loss = float(torch.stack(losses).mean())
        losses.clear()
        if not math.isfinite(train_loss):
            raise RunError(f"the loss is {train_loss} in stage {stage.name!r}, epoch {epoch + 1}")
        score = None if self.evaluate is None else self.score()
        if score is not None and math.isnan(score):
            raise RunError(f"the score is nan in stage {stage.name!r}, epoch {epoch + 1}")
        record = {
            "stage": stage.name,
            "epoch": epoch + 1,
            "step": step,
            "seconds": time.perf_counter() - self.began,
            "train_loss": train_loss,
            "score": score,
        }
        self.history.records.append(record)
        if self.on_record is not None:
            self.on_record(record)
        if score is None:
            return None, 0
        if self.history.best_score is None or score > self.history.best_score:
            self.history.best_score, self.history.best_epoch = score, epoch + 1
            return copy.deepcopy(self.model.state_dict()), 0
        return best, stale + 1
