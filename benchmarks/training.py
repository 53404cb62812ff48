"""Training of a run: batches, validation, early stopping, and what it took."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.environment import synchronize
from featemb.benchmarks.evaluation import predict, quick_scores
from featemb.datasets import Dataset
from featemb.fit import fit
from featemb.loop import History
from featemb.models import CTRModel

OnRecord = Callable[[dict[str, Any]], None]


@dataclass
class Trained:
    """What training left beside the weights.

    Attributes:
        history: of `featemb.fit`.
        curve: one dict an evaluation: stage, epoch, step, seconds, train_loss, valid_auc,
            valid_logloss.
        bytes: training bytes of the embedding layers by part, at the evaluation with most.
        seconds: training without evaluation.
        evaluate_seconds: validation.
    """

    history: History
    curve: list[dict[str, Any]] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    evaluate_seconds: float = 0.0


def train(net: CTRModel, config: RunConfig, dataset: Dataset, on_record: OnRecord) -> Trained:
    """Train a network in place; it ends with the weights of the best validation AUC.

    Raises:
        RunError: the loss is not finite.
    """
    splits, device = dataset.splits, torch.device(config.device)
    curve: list[dict[str, Any]] = []
    most: dict[str, int] = {}
    scores: dict[str, float] = {}
    evaluate_seconds = 0.0

    def evaluate() -> float:
        nonlocal evaluate_seconds
        began = time.perf_counter()
        score = predict(net, splits["valid"], config.eval_batch_size, device)
        scores["auc"], scores["logloss"] = quick_scores(splits["valid"].label.numpy(), score)
        evaluate_seconds += time.perf_counter() - began
        return scores["auc"]

    def note(record: dict[str, Any]) -> None:
        nonlocal most
        kept = {key: record[key] for key in ("stage", "epoch", "step", "seconds", "train_loss")}
        curve.append(kept | {"valid_auc": record["score"], "valid_logloss": scores["logloss"]})
        parts = dict(net.memory(list(optimizers)).training_parts)
        most = max(most, parts, key=lambda one: sum(one.values()))
        on_record(curve[-1])

    began = time.perf_counter()
    with _watched_optimizers() as optimizers:
        history = fit(
            net,
            lambda epoch: splits["train"].batches(
                config.batch_size, shuffle=True, seed=config.seed, epoch=epoch, device=device
            ),
            evaluate,
            on_record=note,
            **{name: getattr(config, name) for name in _FIT},
        )
    synchronize(config.device)
    seconds = time.perf_counter() - began - evaluate_seconds
    return Trained(history, curve, most, seconds, evaluate_seconds)


_FIT = (
    *("epochs", "lr", "weight_decay", "net_weight_decay", "optimizer"),
    *("patience", "lr_decay", "eval_every"),
)


@contextmanager
def _watched_optimizers() -> Iterator[weakref.WeakSet[torch.optim.Optimizer]]:
    """Gather the optimizers that step, so that the bytes of their state can be counted."""
    seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.add(optimizer)

    handle = register_optimizer_step_post_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
