"""Small models over equal and unequal widths, for the tests of the models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import featemb as fe
from featemb.methods.unified import Unified
from featemb.models import CTRModel, build, config_fields, names

CARDINALITIES = {"user": 64, "item": 9, "site": 5}
COLUMNS = ("age", "price")
EMBEDDINGS = ("equal", "unequal")
SMALL: dict[str, Any] = {"hidden": [8, 6], "bottom": [5], "dropout": 0.0, "project": True}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in names()),
    ("deepfm", {"batch_norm": True}),
    ("dcnv2", {"structure": "stacked"}),
    ("dcnv2", {"low_rank": 3, "cross_layers": 2}),
    ("dcnv2", {"structure": "stacked", "hidden": []}),
]


def layer_of(kind: str, dim: int = 4) -> fe.FeatureEmbedding:
    schema = fe.Schema([fe.Feature(k, v) for k, v in CARDINALITIES.items()], COLUMNS)
    if kind == "equal":
        return fe.embedding(schema, "full", dim=dim)
    spec = Unified(rows=50, lookups=2, per_feature={"item": 3, "site": 1})
    return fe.embedding(schema, spec, dim=dim)


def small_net(name: str, kind: str = "equal", numeric: int = 2, **config: Any) -> CTRModel:
    """Build a small model whose weights, zeros included, are all set to random values."""
    fields = config_fields(name)
    settings = {**{k: v for k, v in SMALL.items() if k in fields}, **config}
    net = build(name, embedding=layer_of(kind), numeric=numeric, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.7, 0.7, generator=generator)
        for key, buffer in net.named_buffers():
            if "running" in key:
                buffer.uniform_(0.5, 1.5, generator=generator)
    return net


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    columns = [torch.randint(v, (size,), generator=generator) for v in CARDINALITIES.values()]
    return torch.stack(columns, 1), torch.randn(size, 2, generator=generator)
