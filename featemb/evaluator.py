"""`Evaluator`: scores a model on held-out batches; many variants of a layer in one pass.

Shape letters: B samples of a batch, V variants, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featemb.errors import RunError
from featemb.stage import Stage

Batches = Callable[[], Iterable[Any]]


class Evaluator:
    """Scores a model as it stands, or V variants of an embedding layer in one pass.

    For variants every batch is repeated V times, sample b of variant v at ``v B + b``: a layer that
    searches answers each copy with its own form, and looks the rows up once. Where the model has
    batch normalisation, a pass over the calibration batches first gives each variant running
    statistics of its own: those of the trained form belong to other inputs.

    Args:
        model: gives logits ``[B]``; called as ``model(ids)`` or ``model(ids, numeric)``.
        batches: the held-out batches.
        score: (labels ``[N]``, logits ``[N]``) -> score, higher is better.
        calibration: training batches for batch normalisation; None leaves its statistics alone.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        score: Callable[[Tensor, Tensor], float],
        calibration: Batches | None = None,
    ) -> None:
        self.model, self.batches, self.score = model, batches, score
        self.calibration = calibration

    @torch.no_grad()
    def __call__(self) -> float:
        """Score the model as it stands."""
        return self._scores(1)[0]

    @torch.no_grad()
    def variants(self, count: int) -> list[float]:
        """Score V variants in one pass; the layer must expect the repeated batches.

        Raises:
            RunError: several variants of ids that are no dense tensor.
        """
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        if not norms or self.calibration is None:
            return self._scores(count)
        with _own_statistics(norms, count) as statistics:
            for batch in self.calibration():
                self._logits(batch, count)
            for one in statistics:
                one.collecting = False
            return self._scores(count)

    def _scores(self, count: int) -> list[float]:
        labels, logits = [], []
        for batch in self.batches():
            labels.append(batch.label)
            logits.append(self._logits(batch, count))
        label, found = torch.cat(labels), torch.cat(logits, 1)
        return [self.score(label, one) for one in found]

    def _logits(self, batch: Any, count: int) -> Tensor:
        """Return ``[V, B]``."""
        ids, numeric = batch.ids, batch.numeric
        if count > 1:
            if not isinstance(ids, Tensor):
                raise RunError("variants are scored together on dense ids only; score one by one")
            ids = ids.repeat(count, 1)
            numeric = None if numeric is None else numeric.repeat(count, 1)
        inputs = (ids,) if numeric is None else (ids, numeric)
        logits: Tensor = self.model(*inputs)
        return logits.float().view(count, -1)


class _Statistics:
    """Batch normalisation of V variants, each by the mean and variance of its own samples."""

    def __init__(self, norm: _BatchNorm, count: int) -> None:
        self.norm, self.count, self.collecting = norm, count, True
        self.batches = 0
        self.mean: Tensor | float = 0.0
        self.variance: Tensor | float = 0.0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[V B, C]``."""
        values = inputs.view(self.count, -1, inputs.shape[1])
        if self.collecting:
            variance, mean = torch.var_mean(values, 1, correction=0)
            self.batches += 1
            self.mean = self.mean + (mean - self.mean) / self.batches
            self.variance = self.variance + (variance - self.variance) / self.batches
        else:
            mean, variance = torch.as_tensor(self.mean), torch.as_tensor(self.variance)
        gain = torch.rsqrt(variance + self.norm.eps)
        if self.norm.weight is not None:
            gain = gain * self.norm.weight
        shift = -mean * gain if self.norm.bias is None else self.norm.bias - mean * gain
        normed = torch.addcmul(shift[:, None], values, gain[:, None])
        return normed.view_as(inputs)


@contextmanager
def _own_statistics(norms: list[_BatchNorm], count: int) -> Iterator[list[_Statistics]]:
    statistics = [_Statistics(norm, count) for norm in norms]
    for norm, own in zip(norms, statistics, strict=True):
        norm.forward = own  # type: ignore[method-assign, assignment]
    try:
        yield statistics
    finally:
        for norm in norms:
            del norm.forward


class Scorer:
    """``evaluate`` in eval mode without gradients; the model's mode is as before.

    Args:
        model: the model.
        evaluate: its score, higher is better; perhaps an `Evaluator`, for ``variants``.

    Attributes:
        stage: the stage at hand.
        seconds: time spent.
    """

    stage: Stage

    def __init__(self, model: nn.Module, evaluate: Callable[[], float] | None) -> None:
        self.model, self.evaluate = model, evaluate
        self.seconds = 0.0
        variants = getattr(evaluate, "variants", None)
        if variants is not None:
            self.variants = lambda count: self._call(lambda: variants(count))

    def __call__(self) -> float:
        """Score the model as it stands.

        Raises:
            RunError: there is no ``evaluate``.
        """
        if self.evaluate is None:
            raise RunError(f"stage {self.stage.name!r} searches and needs an evaluate function")
        return float(self._call(self.evaluate))

    def _call(self, evaluate: Callable[[], Any]) -> Any:
        training = self.model.training
        if training:
            self.model.eval()
        began = time.perf_counter()
        with torch.no_grad():
            found = evaluate()
        self.seconds += time.perf_counter() - began
        if training:
            self.model.train()
        return found
