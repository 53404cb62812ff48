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
from featemb.layer import FeatureEmbedding
from featemb.stage import Stage
from featemb.variants import Variants

Batches = Callable[[], Iterable[Any]]
_REPEATED_ROWS = 8192


class Evaluator:
    """Scores a model as it stands, or V variants of an embedding layer in one pass.

    Variants are forms of an embedding layer that searches (its ``variants``). Rows are looked up
    once a batch. A model that can be narrowed (``model.narrowed(widths)``) then computes each
    variant with the columns that it has. For any other model every batch is repeated V times,
    sample b of variant v at ``v B + b``, and the layer answers each copy with its own form. Where
    the model has batch normalisation, a pass over the calibration batches first gives each variant
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
        return self._scores(_Repeated(self.model, 1))[0]

    @torch.no_grad()
    def variants(self, count: int) -> list[float]:
        """Score V variants in one pass; the layer that searches must have as many.

        Raises:
            RunError: several variants of ids that are no dense tensor.
        """
        way = _narrowed(self.model) or _Repeated(self.model, count)
        if self.calibration is None:
            return self._scores(way)
        with _own_statistics(way) as statistics:
            for batch in self.calibration() if statistics else ():
                way.logits(batch)
            for one in statistics:
                one.collecting = False
            return self._scores(way)

    def _scores(self, way: _Repeated | _Narrowed) -> list[float]:
        labels, logits = [], []
        for batch in self.batches():
            labels.append(batch.label)
            logits.append(way.logits(batch).float())
        label, found = torch.cat(labels), torch.cat(logits, 1)
        return [self.score(label, one) for one in found]


class _Repeated:
    """One network that reads every batch V times."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model, self.count = model, count
        self.models = [(model, count)]

    def logits(self, batch: Any) -> Tensor:
        """Return ``[V, B]``."""
        ids, numeric = batch.ids, batch.numeric
        if self.count == 1:
            return self._call(ids, numeric)
        if not isinstance(ids, Tensor):
            raise RunError("variants are scored together on dense ids only; score one by one")
        rows = max(1, _REPEATED_ROWS // self.count)  # what a processor's cache holds
        pieces = torch.split(ids, rows)
        columns = [None] * len(pieces) if numeric is None else torch.split(numeric, rows)
        return torch.cat(
            [
                self._call(one.repeat(self.count, 1), c if c is None else c.repeat(self.count, 1))
                for one, c in zip(pieces, columns, strict=True)
            ],
            1,
        )

    def _call(self, ids: Any, numeric: Tensor | None) -> Tensor:
        inputs = (ids,) if numeric is None else (ids, numeric)
        logits: Tensor = self.model(*inputs)
        return logits.view(self.count, -1)


class _Narrowed:
    """A network for each variant, of the columns that it has; other weights are shared."""

    def __init__(self, networks: list[Any], variants: Variants) -> None:
        self.networks, self.variants = networks, variants
        self.models = [(network, 1) for network in networks]

    def logits(self, batch: Any) -> Tensor:
        """Return ``[V, B]``."""
        vectors = self.variants.vectors(batch.ids)
        return torch.stack(
            [
                network.logits(batch.ids, one, batch.numeric)
                for network, one in zip(self.networks, vectors, strict=True)
            ]
        )


class _Once(nn.Module):
    """A layer beside the one that searches: it looks a batch up once for all variants."""

    def __init__(self, layer: FeatureEmbedding) -> None:
        super().__init__()
        self.layer = layer
        self._ids: Any = None
        self._vectors: Any = None

    def forward(self, ids: Any) -> Tensor:
        """Return the embedded batch."""
        if ids is not self._ids:
            self._ids, self._vectors = ids, self.layer(ids)
        vectors: Tensor = self._vectors
        return vectors


def _narrowed(model: nn.Module) -> _Narrowed | None:
    """Narrow a model for each variant of its layer, where both know how to."""
    layer = getattr(model, "embedding", None)
    if not (isinstance(layer, FeatureEmbedding) and layer.variants and hasattr(model, "narrowed")):
        return None
    narrow: Any = model.narrowed
    networks = [narrow(widths) for widths in layer.variants.widths]
    if None in networks:
        return None
    once: dict[FeatureEmbedding, _Once] = {}
    for network in networks:
        for name, child in list(network.named_children()):
            if isinstance(child, FeatureEmbedding) and child is not layer:
                setattr(network, name, once.setdefault(child, _Once(child)))
    return _Narrowed(networks, layer.variants)


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
def _own_statistics(way: _Repeated | _Narrowed) -> Iterator[list[_Statistics]]:
    norms = [
        (norm, count)
        for model, count in way.models
        for norm in model.modules()
        if isinstance(norm, _BatchNorm)
    ]
    statistics = [_Statistics(norm, count) for norm, count in norms]
    for (norm, _), own in zip(norms, statistics, strict=True):
        norm.forward = own  # type: ignore[method-assign, assignment]
    try:
        yield statistics
    finally:
        for norm, _ in norms:
            del norm.forward


class Scorer:
    """``evaluate`` in eval mode without gradients; the model's mode is as before.

    Args:
        model: the model.
        evaluate: its score, higher is better; perhaps an `Evaluator`, for ``variants``. If it has a
            method ``describe() -> dict``, that is called behind the step before an evaluation, and
            what it tells (numbers and texts) is added to the record.

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

    def describe(self) -> dict[str, Any]:
        """Return what ``evaluate`` says of the model behind the step at hand."""
        describe = getattr(self.evaluate, "describe", None)
        return {} if describe is None else dict(describe())

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
