"""`compress`: trained tables, of whatever framework, in a compressed form that serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featemb.codecs.base import Codec, codec_by_name
from featemb.errors import DataError, SchemaError
from featemb.frozen import FrozenEmbedding
from featemb.parts import Concat, Lookup, OffsetAddress, Source, Split
from featemb.schema import Feature, Schema


@torch.no_grad()
def compress(
    tables: Mapping[str, Any],
    codec: Codec | str = "int8",
    schema: Schema | None = None,
) -> FrozenEmbedding:
    """Return the frozen form of trained tables, by a codec and without training.

    ::

        frozen = fe.compress({"user": model.user.weight, "item": item_array}, "pq(parts=4)")
        frozen.save("tables.safetensors")

    Tables of one width are encoded together: codecs with codebooks or scales of a whole table
    share them among these features.

    Args:
        tables: feature name -> ``[n_f, D_f]``, row x of which is the vector of id x: a torch
            tensor, a numpy array, or what torch makes a tensor of. Widths may differ.
        codec: format of the rows, such as "int8", "pq(parts=8)" or "binary".
        schema: the features, in any order: for pooled features, and with counts for codecs that
            weigh rows by them. None: single-valued features in the order of the tables, all rows
            alike.

    Raises:
        SchemaError: tables and schema do not name the same features, or their sizes differ.
        DataError: a table is no matrix of floats, or a number in it is not finite.
        ConfigError: there is no such codec.
    """
    if isinstance(codec, str):
        codec = codec_by_name(codec)
    weights = {name: _matrix(name, table) for name, table in tables.items()}
    if schema is None:
        schema = Schema(Feature(name, len(weight)) for name, weight in weights.items())
    else:
        _check(schema, weights)
        codec = codec.counted(schema)
    widths = tuple(weights[name].shape[1] for name in schema.names)
    order = list(dict.fromkeys(widths))
    which = tuple(order.index(width) for width in widths)
    sources = []
    for width in order:
        wanted = [one == width for one in widths]
        own = [weights[name] for name, keep in zip(schema.names, wanted, strict=True) if keep]
        table = torch.cat([one.float() for one in own])
        sources.append(_source([len(one) for one in own], table, codec.only(wanted)))
    dim = max(widths)
    source = sources[0] if len(sources) == 1 else Split(sources=sources, which=which, dim=dim)
    return FrozenEmbedding(schema, dim, widths, source).eval()


def _source(sizes: list[int], table: Tensor, codec: Codec) -> Source:
    address = OffsetAddress.of(sizes)
    return Lookup(address=address, rows=codec.at(address).encode(table), combine=Concat())


def _matrix(name: str, table: Any) -> Tensor:
    try:
        weight = table.detach() if isinstance(table, Tensor) else torch.as_tensor(table)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the table of feature {name!r} is no array: {error}") from error
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise DataError(
            f"the table of feature {name!r} must be a matrix of floats with a row an id, "
            f"got {tuple(weight.shape)} of {weight.dtype}"
        )
    finite = torch.isfinite(weight.float()).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise DataError(f"row {row} of the table of feature {name!r} is not finite in fp32")
    return weight


def _check(schema: Schema, weights: Mapping[str, Tensor]) -> None:
    if set(schema.names) != set(weights):
        raise SchemaError(
            f"the schema has the features {sorted(schema.names)}, the tables {sorted(weights)}"
        )
    for feature in schema.features:
        rows = len(weights[feature.name])
        if feature.cardinality != rows:
            raise SchemaError(
                f"feature {feature.name!r} has {feature.cardinality} ids and a table of {rows} rows"
            )
