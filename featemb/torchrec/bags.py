"""Bags of ids as TorchRec has them: what a collection of tables checks, sums and lays out.

Shape letters: B samples, N ids, D width of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featemb.build import embedding
from featemb.errors import BudgetError, ConfigError, SchemaError
from featemb.layer import FeatureEmbedding
from featemb.schema import Feature, Schema
from featemb.spec import Spec


def schema_of(tables: Sequence[Any], counts: Mapping[str, Any] | None) -> Schema:
    """Return the schema of a layer whose features are tables."""
    schema = Schema(
        [
            Feature(
                table.name, table.num_embeddings, multi=True, pooling=table.pooling.name.lower()
            )
            for table in tables
        ]
    )
    known = {name: one for name, one in (counts or {}).items() if name in schema.names}
    return schema.with_counts(known) if known else schema


def divide(
    budget: int | None, layers: Sequence[tuple[Schema, int]], method: str | Spec
) -> list[int | None]:
    """Share bytes out among layers by their plain tables' bytes, but each its least.

    Raises:
        BudgetError: the least of all layers together is more; its ``floor`` says how much.
    """
    if budget is None:
        return [None] * len(layers)
    least: dict[int, int] = {}
    while True:
        rest = {n: one.full_bytes(dim) for n, (one, dim) in enumerate(layers) if n not in least}
        left, whole = budget - sum(least.values()), sum(rest.values())
        shares = least | {n: left * size // whole for n, size in rest.items()}
        floors = {n: _floor(*layers[n], method, shares[n]) for n in rest}
        more = {n: floor for n, floor in floors.items() if floor}
        if not more:
            return [shares[n] for n in range(len(layers))]
        least |= more
        if sum(least.values()) > budget or len(least) == len(layers):
            needed = sum(least.values())
            if needed <= budget:
                return [least[n] for n in range(len(layers))]
            raise BudgetError(f"the layers need {needed:,} bytes, the budget is {budget:,}", needed)


def _floor(schema: Schema, dim: int, method: str | Spec, share: int) -> int:
    """Return the bytes that a layer needs where a share is too small, else 0."""
    try:
        embedding(schema, method, dim=dim, budget=max(1, share), device="meta")
    except BudgetError as error:
        return error.floor
    return 0


def check_tables(tables: Sequence[Any], weighted: bool) -> None:
    """Refuse tables that TorchRec would refuse.

    Raises:
        ConfigError: names the table.
    """
    names = [table.name for table in tables]
    if not names:
        raise ConfigError("there are no tables")
    for table in tables:
        if names.count(table.name) > 1:
            raise ConfigError(f"table {table.name!r} appears twice; tables need names of their own")
        pooling = getattr(getattr(table, "pooling", None), "name", None)
        if pooling not in ("SUM", "MEAN"):
            raise ConfigError(f"table {table.name!r}: pooling must be SUM or MEAN, got {pooling}")
        if weighted and pooling == "MEAN":
            raise ConfigError(f"table {table.name!r}: weighted bags are pooled by SUM, not by MEAN")


def check_widths(layer: nn.Module) -> None:
    """Refuse a layer whose features have other widths than the tables.

    Raises:
        ConfigError: names method and widths.
    """
    assert isinstance(layer, FeatureEmbedding)
    if any(width != layer.dim for width in layer.widths):
        widths = dict(zip(layer.schema.names, layer.widths, strict=True))
        raise ConfigError(
            f"{layer.config.name}: a KeyedTensor has the tables' own width {layer.dim}, "
            f"this method's settings give {widths}"
        )


def weights_of(bags: Sequence[Any], places: Sequence[tuple[int, str]]) -> Tensor:
    """Return the weights of all ids, ``[N]``.

    Raises:
        SchemaError: a feature has none.
    """
    found = [bag.weights_or_none() for bag in bags]
    for one, (_, name) in zip(found, places, strict=True):
        if one is None:
            raise SchemaError(f"feature {name!r} has no weights, and the collection is weighted")
    return torch.cat(found)


def sum_bags(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Sum the vectors ``[N, D]`` of bags that follow each other; empty bags give zeros."""
    bag = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return vectors.new_zeros(len(lengths), vectors.shape[1]).index_add(0, bag, vectors)


def whole_batch(pooled: list[Tensor], names: Sequence[str], features: Any) -> list[Tensor]:
    """Bring features of batch sizes of their own to the whole batch's rows.

    Raises:
        SchemaError: batch sizes differ, and the features have no inverse indices.
    """
    inverse = features.inverse_indices_or_none()
    if inverse is not None:
        rows = dict(zip(inverse[0], inverse[1], strict=True))
        return [one[rows[name]] for one, name in zip(pooled, names, strict=True)]
    sizes = dict(zip(names, (len(one) for one in pooled), strict=True))
    if len(set(sizes.values())) > 1:
        raise SchemaError(f"features have other batch sizes, and no inverse indices: {sizes}")
    return pooled
