"""`fit`: the one reference loop over stages and hooks. It names no method.

Users may write their own: the contract checks train by one of ten lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from featemb.checkpoint import Checkpoint
from featemb.fbgemm.choice import kernel_of
from featemb.history import Batches, History, Settings, check_anneal
from featemb.loop import Loop


def fit(
    model: nn.Module,
    batches: Batches,
    evaluate: Callable[[], float] | None = None,
    *,
    held_out: Batches | None = None,
    epochs: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    net_weight_decay: float = 0.0,
    optimizer: str = "row_adam",
    patience: int = 2,
    lr_decay: float = 1.0,
    anneal: float = 0.0,
    eval_every: int | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train a model through all stages of its embedding layers, by binary cross-entropy.

    Args:
        model: called as ``model(ids)`` or ``model(ids, numeric)``, gives logits ``[B]``; holds
            at least one `featemb.FeatureEmbedding`. `featemb.use_kernel` says who trains its rows.
        batches: epoch number from 0 -> the batches of that epoch, the same ones every time.
        evaluate: score of the model in eval mode, higher is better: training stops early, the
            best weights are restored. A `featemb.Evaluator` scores a search's candidates together.
        held_out: as ``batches``, of rows kept from training: for stages that train on them too.
        epochs: upper limit of each training stage (a stage may set its own).
        lr: learning rate.
        weight_decay: L2 on embedding rows (see `featemb.optim`).
        net_weight_decay: L2 on the other parameters.
        optimizer: name as in `featemb.optim.build`.
        patience: stop after this many evaluations in a row without a better score.
        lr_decay: factor of the learning rates after an evaluation without a better score (BARS
            uses 0.1). Not together with ``anneal``.
        anneal: share of a stage's last epochs in which the learning rates fall to zero in equal
            steps. Patience that runs out before begins them; they are run to their end.
        eval_every: steps between evaluations; None evaluates after every epoch.
        on_record: called with every new record of the history, and with those of a checkpoint
            first; what it adds to a record (numbers and texts) is kept.
        checkpoint: file of all state, written after every evaluation and stage, or a
            `featemb.Checkpoint` to write it every so many minutes too. Where it exists, training
            goes on from it, with the answers of one that was not interrupted (a search starts
            over); delete it to begin anew. Arguments must be the same, but for more epochs.
        stop: asked after every step; on True the checkpoint is written and `Stopped` raised.

    Raises:
        ConfigError: ``anneal`` is out of range, or given together with ``lr_decay``.
        RunError: the model holds no embedding layer, a stage needs ``held_out`` or ``evaluate``,
            or a loss or a weight is not finite.
        FormatError: the checkpoint is not one, or of another model or training.
        StorageError: it cannot be written; the last one is as it was.
    """
    steps = (epochs, lr, weight_decay, net_weight_decay, optimizer)
    stops = (patience, lr_decay, eval_every)
    check_anneal(anneal, lr_decay)
    how = (on_record, anneal, stop)
    settings = Settings(batches, evaluate, held_out, *steps, *stops, *how, kernel=kernel_of(model))
    return Loop(model, settings, checkpoint).run()
