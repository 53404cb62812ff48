"""Models of other libraries, trained on a small planted data set: what users come with.

`deepctr_torch` looks for a newer version of itself on the network when it is imported, in a thread;
here it finds no network, and the thread is over when the import is. `fuxictr` publishes its layers
and its training, not its DeepFM and DCNv2, so these two are put together from its layers.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

SIZES = {"user": 800, "item": 300, "tags": 24}
TAGS = 4  # ids of a row's tags; 0 is no tag
FRAMES = dict[str, np.ndarray[Any, Any]]


def planted_rows(rows: int, seed: int = 0) -> tuple[FRAMES, np.ndarray[Any, Any]]:
    """Columns and labels; a label follows an effect of each user, item and tag, with noise."""
    effect = np.random.default_rng(17)
    of_user, of_item = effect.normal(size=SIZES["user"]), effect.normal(size=SIZES["item"])
    of_tag = effect.normal(size=SIZES["tags"])
    rng = np.random.default_rng(seed)
    columns = {
        "user": rng.integers(0, SIZES["user"], rows),
        "item": rng.integers(0, SIZES["item"], rows),
        "price": rng.normal(size=rows).astype("float32"),
        "tags": rng.integers(0, SIZES["tags"], (rows, TAGS)),
    }
    score = of_user[columns["user"]] + of_item[columns["item"]] + of_tag[columns["tags"]].mean(1)
    score += 0.5 * columns["price"] + rng.logistic(size=rows)
    return columns, (score > 0).astype("float32")


def deepctr_torch() -> Any:
    """The package, imported without a look at the network."""
    before = set(threading.enumerate())
    offline = mock.patch("requests.get", side_effect=ConnectionError("no network in tests"))
    with offline, contextlib.redirect_stdout(io.StringIO()):
        import deepctr_torch
        import deepctr_torch.inputs
        import deepctr_torch.models

        for thread in set(threading.enumerate()) - before:
            thread.join()
    return deepctr_torch


def deepctr_deepfm(dim: int = 8, epochs: int = 3, rows: int = 8000) -> nn.Module:
    """DeepCTR-Torch's DeepFM, trained by its own `fit`."""
    package = deepctr_torch()
    inputs = package.inputs
    features = [
        inputs.SparseFeat("user", SIZES["user"], embedding_dim=dim),
        inputs.SparseFeat("item", SIZES["item"], embedding_dim=dim),
        inputs.DenseFeat("price", 1),
        inputs.VarLenSparseFeat(
            inputs.SparseFeat("tags", SIZES["tags"], embedding_dim=dim), TAGS, combiner="mean"
        ),
    ]
    columns, labels = planted_rows(rows)
    model: Any = package.models.DeepFM(
        features, features, dnn_hidden_units=(32,), init_std=0.01, seed=3
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=0.01), "binary_crossentropy")
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(columns, labels, batch_size=256, epochs=epochs, verbose=0)
    return model.eval()


def deepctr_input(model: Any, columns: FRAMES) -> Tensor:
    """The one float matrix that DeepCTR-Torch's models read, columns in their order."""
    parts = [np.asarray(columns[name]) for name in model.feature_index]
    parts = [part[:, None] if part.ndim == 1 else part for part in parts]
    return torch.from_numpy(np.concatenate(parts, axis=-1)).float()


def fuxictr_model(kind: str, folder: Any, dim: int = 8, epochs: int = 3, rows: int = 8000) -> Any:
    """DeepFM or DCNv2 of FuxiCTR's layers and base class, trained by its own `fit`."""
    torch.manual_seed(3)
    model = _fuxictr_class()(kind, _feature_map(folder), dim, str(folder))
    model.compile("adam", "binary_crossentropy", 0.01)
    model.reset_parameters()
    train, valid = list(fuxictr_batches(rows, 0)), list(fuxictr_batches(2000, 1))
    (folder / "planted").mkdir(exist_ok=True)
    model.fit(train, epochs=epochs, validation_data=valid)
    return model.eval()


def fuxictr_batches(rows: int, seed: int, size: int = 256) -> Iterator[dict[str, Tensor]]:
    """Batches as FuxiCTR's loaders give them: a dictionary of columns, the label among them."""
    columns, labels = planted_rows(rows, seed)
    for at in range(0, rows, size):
        batch = {name: torch.from_numpy(column[at : at + size]) for name, column in columns.items()}
        yield {**batch, "click": torch.from_numpy(labels[at : at + size])}


def _feature_map(folder: Any) -> Any:
    from fuxictr.features import FeatureMap

    found = FeatureMap("planted", str(folder))
    categorical = {"source": "", "type": "categorical"}
    found.features["user"] = {**categorical, "vocab_size": SIZES["user"]}
    found.features["item"] = {**categorical, "vocab_size": SIZES["item"]}
    found.features["price"] = {"source": "", "type": "numeric"}
    found.features["tags"] = {
        "source": "",
        "type": "sequence",
        "vocab_size": SIZES["tags"],
        "padding_idx": 0,
        "max_len": TAGS,
        "feature_encoder": "layers.MaskedAveragePooling()",
    }
    found.labels, found.num_fields = ["click"], len(found.features)
    return found


def _fuxictr_class() -> Any:
    from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class Model(BaseModel):  # type: ignore[misc, unused-ignore]
        def __init__(self, kind: str, features: Any, dim: int, folder: str) -> None:
            super().__init__(features, kind, verbose=0, model_root=folder, metrics=["AUC"])
            width = dim * features.num_fields
            self.embedding_layer = FeatureEmbedding(features, dim)
            self.mlp = MLP_Block(width, [32], output_dim=1)
            self.wide = FactorizationMachine(features) if kind == "deepfm" else None
            self.crossed = CrossNetV2(width, 2) if kind == "dcnv2" else None
            self.last = nn.Linear(width, 1)

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            found = self.get_inputs(inputs)
            vectors = self.embedding_layer(found)
            logit = self.mlp(vectors.flatten(1))
            if self.wide is not None:
                logit = logit + self.wide(found, vectors)
            if self.crossed is not None:
                logit = logit + self.last(self.crossed(vectors.flatten(1)))
            return {"y_pred": self.output_activation(logit)}

    return Model
