"""Training of a run: batches, validation, early stopping, and what it took."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from featemb.benchmarks import metrics
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import Scores, predict, quick_scores
from featemb.benchmarks.network import build_network
from featemb.benchmarks.stopping import now
from featemb.checkpoint import Checkpoint
from featemb.datasets import Dataset, Split
from featemb.evaluator import Evaluator
from featemb.fit import fit
from featemb.history import Batch, History
from featemb.models import CTRModel
from featemb.schema import Schema

OnRecord = Callable[[dict[str, Any]], None]


@dataclass
class Trained:
    """What training left beside the weights.

    Attributes:
        history: of `featemb.fit`.
        curve: one dict an evaluation: stage, epoch, step, seconds, train_loss, valid_auc,
            valid_logloss.
        bytes: training bytes of the embedding layers by part, at the evaluation with most.
    """

    history: History
    curve: list[dict[str, Any]] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)


class Alone:
    """How one process trains; `featemb.benchmarks.distributed.Ranks` is how several do.

    Attributes:
        about: what a run's record tells of it.
    """

    about: Mapping[str, Any] = MappingProxyType({})

    def build(self, config: RunConfig, schema: Schema) -> CTRModel:
        """Build the network."""
        return build_network(config, schema)

    def run(
        self,
        net: CTRModel,
        config: RunConfig,
        dataset: Dataset,
        note: OnRecord,
        checkpoint: Checkpoint | None,
    ) -> tuple[CTRModel, Trained]:
        """Train a network; return what is to be frozen."""
        return net, train(net, config, dataset, note, checkpoint, self)

    def clean(self, checkpoint: Checkpoint) -> None:
        """Remove what a run went on from."""
        checkpoint.remove()

    def batches(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """Return this process's part of some batches."""
        return batches

    def predict(
        self, net: nn.Module, split: Split, batch_size: int, device: torch.device
    ) -> Scores:
        """Return the probabilities of a split, of all its rows; `Stopped` is raised inside."""
        with now().at_once():
            return predict(net, split, batch_size, device)

    def stop(self) -> bool:
        """Whether training was told to end."""
        return now().asked()

    def training_parts(
        self, net: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
    ) -> dict[str, int]:
        """Return the embedding layers' bytes in training by part."""
        assert isinstance(net, CTRModel)
        return dict(net.memory(list(optimizers)).training_parts)


def train(
    net: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    on_record: OnRecord,
    checkpoint: Checkpoint | None = None,
    side: Alone | None = None,
) -> Trained:
    """Train a network in place; it ends with the weights of the best validation AUC.

    ``side`` says what this process does of it, where there are several.

    Raises:
        RunError: the loss is not finite.
        FormatError: the checkpoint is not one of this training.
        StorageError: the checkpoint cannot be written.
        Stopped: SIGTERM was heard (`featemb.benchmarks.stopping`).
    """
    device, side = torch.device(config.device), side or Alone()
    validation = Validation(net, config, dataset, side)
    curve: list[dict[str, Any]] = []
    most: dict[str, int] = {}

    def note(record: dict[str, Any]) -> None:
        nonlocal most
        if "logloss" not in record:  # a checkpoint's records have what was added to them
            record["logloss"] = validation.logloss
        kept = {key: record[key] for key in ("stage", "epoch", "step", "seconds", "train_loss")}
        curve.append(kept | {"valid_auc": record["score"], "valid_logloss": record["logloss"]})
        most = max(most, record["training_parts"], key=lambda one: sum(one.values()))
        on_record(curve[-1])

    def batches(part: str) -> Callable[[int], Iterable[Batch]]:
        return lambda epoch: side.batches(
            dataset.splits[part].batches(
                config.batch_size, shuffle=True, seed=config.seed, epoch=epoch, device=device
            )
        )

    with _watched_optimizers(validation.optimizers), now().patient():
        history = fit(
            net,
            batches("train"),
            validation,
            held_out=batches("valid"),
            on_record=note,
            checkpoint=checkpoint,
            stop=side.stop,
            **{name: getattr(config, name) for name in _FIT},
        )
    return Trained(history, curve, most)


_FIT = (
    *("epochs", "lr", "weight_decay", "net_weight_decay", "optimizer"),
    *("patience", "lr_decay", "anneal", "eval_every"),
)


_CALIBRATION_BATCHES = 20


class Validation:
    """Scores the validation split: the network as it stands, or variants of it in one pass.

    Attributes:
        logloss: of the last network scored.
        optimizers: those that have stepped.
    """

    def __init__(
        self, net: nn.Module, config: RunConfig, dataset: Dataset, side: Alone | None = None
    ) -> None:
        self._net, self._config, self._splits = net, config, dataset.splits
        self._side = side or Alone()
        self.logloss = 0.0
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def describe(self) -> dict[str, Any]:
        """Return the training bytes behind a step, while its gradients are there."""
        return {"training_parts": self._side.training_parts(self._net, self.optimizers)}

    def __call__(self) -> float:
        """Return the AUC."""
        config, valid = self._config, self._splits["valid"]
        device = torch.device(config.device)
        score = self._side.predict(self._net, valid, config.eval_batch_size, device)
        auc, self.logloss = quick_scores(valid.label.numpy(), score)
        return auc

    def variants(self, count: int) -> list[float]:
        """Return the AUC of each variant; batches are smaller than those of one network."""
        size = max(1024, self._config.eval_batch_size // 4)
        device = torch.device(self._config.device)

        def valid() -> Iterable[Batch]:
            return self._splits["valid"].batches(
                size, shuffle=False, seed=0, epoch=0, device=device
            )

        def calibration() -> Iterable[Batch]:
            train = self._splits["train"].batches(
                size, shuffle=True, seed=self._config.seed, epoch=0, device=device
            )
            return islice(train, _CALIBRATION_BATCHES)

        with now().at_once():
            return Evaluator(self._net, valid, _auc, calibration).variants(count)


def _auc(label: Tensor, logits: Tensor) -> float:
    return metrics.auc(label.cpu().numpy(), logits.cpu().numpy())


@contextmanager
def _watched_optimizers(seen: weakref.WeakSet[torch.optim.Optimizer]) -> Iterator[None]:
    """Gather the optimizers that step, so that the bytes of their state can be counted."""

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.add(optimizer)

    handle = register_optimizer_step_post_hook(note)
    try:
        yield
    finally:
        handle.remove()
