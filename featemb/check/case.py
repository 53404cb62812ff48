"""`Case`: what a check runs on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featemb import staging
from featemb.build import embedding
from featemb.errors import FeatembError
from featemb.evaluator import Evaluator
from featemb.fit import fit
from featemb.ids import Jagged
from featemb.layer import FeatureEmbedding
from featemb.schema import Feature, Schema


class CheckError(FeatembError, AssertionError):
    """A method breaks its contract."""


def expect(holds: bool | Tensor, message: str) -> None:
    """Raise `CheckError` with a message unless something holds."""
    if not bool(holds):
        raise CheckError(message)


def _counts(cardinality: int) -> Any:
    return torch.arange(cardinality, 0, -1).numpy()


_CARDINALITIES = {"user": 97, "item": 41, "day": 7, "flag": 2}
SINGLE = Schema(Feature(name, n, counts=_counts(n)) for name, n in _CARDINALITIES.items())
BAGS = Schema(
    [
        Feature("user", 97, counts=_counts(97)),
        Feature("tags", 41, multi=True, pooling="sum", counts=_counts(41)),
        Feature("genres", 7, multi=True, pooling="mean", counts=_counts(7)),
        Feature("words", 23, multi=True, pooling="max", counts=_counts(23)),
    ]
)
UNBOUNDED = Schema([Feature("user"), Feature("item")])


@dataclass(frozen=True)
class Case:
    """A spec and a width.

    Attributes:
        spec: text of the method under test.
        dim: output width.
    """

    spec: str
    dim: int = 8

    def layer(self, schema: Schema = SINGLE, seed: int = 0, **options: Any) -> FeatureEmbedding:
        """Make a layer of the case."""
        return embedding(schema, self.spec, dim=self.dim, seed=seed, **options)

    def finished(self, schema: Schema) -> FeatureEmbedding:
        """Return a layer that has gone through its stages without a step."""
        layer = self.layer(schema)
        start = copy.deepcopy(layer.state_dict())
        for stage in layer.stages():
            staging.begin(layer, stage, start)
            if stage.kind == "search":
                staging.search(layer, stage, lambda: 0.0)
        return layer.eval()

    def trained(self, seed: int = 0) -> FeatureEmbedding:
        """Return a layer that has been through all of its stages on `task`."""
        layer = self.layer(seed=seed)
        model = LinearReader(layer)
        data = task()
        score = Evaluator(model, lambda: data, _negative_loss)
        fit(model, lambda epoch: data, score, held_out=lambda epoch: data[::-1], epochs=3, lr=0.03)
        return layer.eval()


class TaskBatch(NamedTuple):
    """A batch of the planted task."""

    ids: Tensor
    numeric: None
    label: Tensor


class LinearReader(nn.Module):
    """The smallest model over a layer: a linear read-out, logits ``[B]``."""

    def __init__(self, layer: FeatureEmbedding) -> None:
        super().__init__()
        self.layer = layer
        weight = torch.linspace(-1.0, 1.0, sum(layer.widths)) + 0.03
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Any) -> Tensor:
        """Return logits ``[B]``."""
        logits: Tensor = self.layer(ids) @ self.weight
        return logits


def single_ids(batch: int = 64, seed: int = 0, schema: Schema = SINGLE) -> Tensor:
    """Random ids int64 ``[B, F]``, the extremes of every feature among them."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, n, (batch,), generator=generator) for n in schema.cardinalities]
    ids = torch.stack(columns, dim=1)
    ids[0] = 0
    ids[-1] = torch.tensor(schema.cardinalities) - 1
    return ids


def bags(batch: int = 9, seed: int = 0) -> Jagged:
    """Random bags for `BAGS`, empty ones among them."""
    generator = torch.Generator().manual_seed(seed)
    values, lengths = [], []
    for feature in BAGS.features:
        length = torch.randint(0, 4, (batch,), generator=generator)
        length[0] = 0
        if not feature.multi:
            length = torch.ones(batch, dtype=torch.int64)
        total = int(length.sum())
        values.append(torch.randint(0, feature.cardinality or 1, (total,), generator=generator))
        lengths.append(length)
    return Jagged(torch.cat(values), torch.cat(lengths))


def task(batches: int = 40, batch: int = 128) -> list[TaskBatch]:
    """A learnable task: the label follows the parities of the user's and the item's ids."""
    made = []
    for number in range(batches):
        ids = single_ids(batch, seed=1000 + number)
        noise = torch.rand(batch, generator=torch.Generator().manual_seed(number))
        signal = (ids[:, 0] % 2).float() * 0.6 + (ids[:, 1] % 2).float() * 0.3
        made.append(TaskBatch(ids, None, (noise < 0.05 + signal).float()))
    return made


def _negative_loss(label: Tensor, logits: Tensor) -> float:
    return -float(nn.functional.binary_cross_entropy_with_logits(logits, label))


@torch.no_grad()
def mean_loss(model: nn.Module, data: list[TaskBatch]) -> float:
    """Mean binary cross-entropy of a model over a task."""
    loss = nn.functional.binary_cross_entropy_with_logits
    return sum(float(loss(model(one.ids), one.label)) for one in data) / len(data)
