"""The network of a run: embedding layers that share the bytes asked for, and the CTR model."""

from __future__ import annotations

import torch

from featemb import models
from featemb.benchmarks.config import RunConfig
from featemb.build import embedding
from featemb.errors import BudgetError
from featemb.fbgemm.choice import use_kernel
from featemb.models import CTRModel
from featemb.schema import Schema


def build_network(config: RunConfig, schema: Schema, device: str | None = None) -> CTRModel:
    """Build a run's model on its device, or on another ("meta": without memory).

    A ratio applies to every embedding layer of the model: the main one and its companions
    (first-order weights of width 1). A byte budget B is split by the layers' widths: the main
    layer of width D gets ``floor(B D / (D + 1))`` where there is one companion.

    Raises:
        BudgetError: the method cannot get that small.
        ConfigError: method and model do not fit together, or the kernel cannot train its rows.
    """
    share: int | None = None
    if isinstance(config.budget, int):
        share = max(1, config.budget * config.dim // sum(layer_dims(config, schema)))
    layer = embedding(
        schema,
        config.method,
        dim=config.dim,
        ratio=config.ratio,
        budget=share,
        seed=config.seed,
        device=device or config.device,
    )
    net = models.build(config.model, embedding=layer, seed=config.seed, **dict(config.model_config))
    _check_size(net, config)
    return net if device else use_kernel(net, config.kernel)


def layer_dims(config: RunConfig, schema: Schema) -> list[int]:
    """Widths of the embedding layers that the model makes, found on the meta device."""
    layer = embedding(schema, "full", dim=config.dim, device=torch.device("meta"))
    net = models.build(config.model, embedding=layer, **dict(config.model_config))
    return [layer.dim for layer in net.embeddings()]


def full_bytes(net: CTRModel) -> int:
    """Bytes of plain fp32 tables of the same schema and widths, companions included."""
    return sum(layer.schema.full_bytes(layer.dim) for layer in net.embeddings())


def _check_size(net: CTRModel, config: RunConfig) -> None:
    """Refuse a network above the bytes asked for; every method must keep to them."""
    serving = net.memory().serving
    limit: float | None = None
    if isinstance(config.budget, int):
        limit = config.budget
    elif config.ratio is not None:
        limit = full_bytes(net) / config.ratio
    if limit is not None and serving > limit:
        raise BudgetError(
            f"{config.method} takes {serving:,} bytes in {config.model}, "
            f"{int(limit):,} are allowed",
            serving,
        )
