"""One DeepFM three times: featemb's, FuxiCTR's and DeepCTR-Torch's, each with its own step.

All have F features of equal cardinality, vectors of width D, first-order weights, an MLP of the
same hidden widths with ReLU, no dropout, no normalisation, no regularisation, and Adam.

- FuxiCTR 2.3.10 publishes its layers and its training, not its DeepFM: it is put together from
  them; `BaseModel.train_step` steps it (Adam over all rows, the gradient's norm clipped).
- DeepCTR-Torch 0.3.0: its `DeepFM`; a step is what its `fit` does with a batch.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import featemb as fe
from featemb import models, optim, staging
from featemb.datasets import Batch

TrainStep = Callable[[Tensor, Tensor], object]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model and of a batch.

    Attributes:
        rows: of all features together.
        features: F.
        dim: D.
        hidden: widths of the MLP.
        batch: samples of a step.
    """

    rows: int
    features: int
    dim: int
    hidden: tuple[int, ...]
    batch: int

    @property
    def cardinality(self) -> int:
        """Ids of a feature."""
        return self.rows // self.features

    def names(self) -> list[str]:
        """Names of the features."""
        return [f"f{number}" for number in range(self.features)]


def featemb_net(sizes: Sizes) -> nn.Module:
    """Return featemb's DeepFM over full tables, in training mode."""
    schema = fe.Schema(fe.Feature(name, sizes.cardinality) for name in sizes.names())
    layer = fe.embedding(schema, "full", dim=sizes.dim)
    settings: dict[str, Any] = {"hidden": sizes.hidden, "dropout": 0.0}
    return models.build("deepfm", embedding=layer, numeric=0, **settings).train()


def featemb(sizes: Sizes, optimizer: str = "row_adam") -> TrainStep:
    """Return featemb's step, as `featemb.fit` makes it."""
    net = featemb_net(sizes)
    optimizers, layers = optim.build(net, lr=1e-3, optimizer=optimizer), staging.layers(net)
    taken = 0

    def step(ids: Tensor, label: Tensor) -> None:
        nonlocal taken
        taken += 1
        staging.update(net, layers, Batch(ids, None, label), optimizers)
        for layer in layers:
            layer.after_step(taken)

    return step


def featemb_dense(sizes: Sizes) -> TrainStep:
    """Return featemb's step with Adam over all rows: what the others do."""
    return featemb(sizes, "dense_adam")


def fuxictr(sizes: Sizes) -> TrainStep:
    """Return FuxiCTR's step."""
    from fuxictr.features import FeatureMap

    features = FeatureMap("made_up", ".")
    for name in sizes.names():
        kind = {"source": "", "type": "categorical", "vocab_size": sizes.cardinality}
        features.features[name] = kind
    features.labels, features.num_fields = ["label"], sizes.features
    model = _fuxictr_class()(features, sizes)
    model.compile("adam", "binary_crossentropy", 1e-3)
    model.reset_parameters()
    model.train()
    model._max_gradient_norm = 10.0  # the default of `fit`, which sets it

    def step(ids: Tensor, label: Tensor) -> None:
        columns = dict(zip(sizes.names(), ids.unbind(1), strict=True))
        model.train_step({**columns, "label": label})

    return step


def _fuxictr_class() -> Any:
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class Model(BaseModel):  # type: ignore[misc, unused-ignore]
        def __init__(self, features: Any, sizes: Sizes) -> None:
            super().__init__(features, "DeepFM", verbose=0, model_root=".", metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(features, sizes.dim)
            self.fm = FactorizationMachine(features)
            width = sizes.dim * sizes.features
            self.mlp = MLP_Block(width, list(sizes.hidden), output_dim=1)

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            found = self.get_inputs(inputs)
            vectors = self.embedding_layer(found)
            logit = self.fm(found, vectors) + self.mlp(vectors.flatten(1))
            return {"y_pred": self.output_activation(logit)}

    return Model


def deepctr(sizes: Sizes) -> TrainStep:
    """Return DeepCTR-Torch's step."""
    package = _deepctr_package()
    columns = [
        package.inputs.SparseFeat(name, sizes.cardinality, embedding_dim=sizes.dim)
        for name in sizes.names()
    ]
    no_decay = dict.fromkeys(("l2_reg_linear", "l2_reg_embedding", "l2_reg_dnn"), 0.0)
    model: Any = package.models.DeepFM(columns, columns, dnn_hidden_units=sizes.hidden, **no_decay)
    model.compile("adam", "binary_crossentropy")
    model.train()

    def step(ids: Tensor, label: Tensor) -> None:
        answer = model(ids.float()).squeeze(-1)  # `fit` reads one matrix of floats
        model.optim.zero_grad()
        loss = model.loss_func(answer, label, reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        loss.item()
        total.item()
        total.backward()
        model.optim.step()

    return step


def _deepctr_package() -> Any:
    """Import it without its look on the network for a newer version."""
    before = set(threading.enumerate())
    offline = mock.patch("requests.get", side_effect=ConnectionError("not asked for"))
    with offline, contextlib.redirect_stdout(io.StringIO()):
        import deepctr_torch
        import deepctr_torch.inputs
        import deepctr_torch.models

        for thread in set(threading.enumerate()) - before:
            thread.join()
    return deepctr_torch


CONTENDERS: dict[str, Callable[[Sizes], TrainStep]] = {
    "featemb": featemb,
    "featemb, dense_adam": featemb_dense,
    "fuxictr": fuxictr,
    "deepctr-torch": deepctr,
}


def batches(sizes: Sizes) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a source of random batches: int64 ids ``[B, F]`` drawn evenly, labels ``[B]``.

    Even ids are the hardest case for what reads distinct rows only.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.batch, sizes.features)

    def draw() -> tuple[Tensor, Tensor]:
        ids = torch.randint(sizes.cardinality, shape, generator=generator)
        label = (torch.rand(sizes.batch, generator=generator) < 0.25).float()
        return ids, label

    return draw
