"""The input forms of a layer, brought to one internal form.

Shape letters: B samples, F features, N ids in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featemb.errors import IdError, SchemaError, nearest
from featemb.schema import Schema


class Jagged(NamedTuple):
    """Bags of ids for every (feature, sample), feature-major as TorchRec's KeyedJaggedTensor.

    Attributes:
        values: int64 ``[N]``, the ids of feature 0's samples, then feature 1's, and so on.
        lengths: int64 ``[F * B]``; ``lengths[f * B + b]`` ids belong to feature f, sample b.
    """

    values: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Jagged:
        """Return a copy on another device."""
        return Jagged(
            self.values.to(device, non_blocking=non_blocking),
            self.lengths.to(device, non_blocking=non_blocking),
        )


def tracing() -> bool:
    """Whether torch.compile or torch.export is tracing: value checks would break the graph."""
    return torch.compiler.is_compiling()


def parse(ids: Any, schema: Schema) -> Tensor | Jagged:
    """Check any accepted input and return int64 ``[B, F]`` or `Jagged`.

    Args:
        ids: an integer tensor ``[B, F]`` (all features single-valued), a `Jagged`, a TorchRec
            ``KeyedJaggedTensor``, or a dict from feature name to a tensor ``[B]`` or a pair
            (values, lengths).
        schema: what the ids must fit.

    Raises:
        SchemaError: the form, dtype, shape or keys do not fit the schema.
        IdError: an id is negative or not below its cardinality, or the batch is empty.
    """
    if isinstance(ids, Tensor):
        return _parse_dense(ids, schema)
    if isinstance(ids, Jagged):
        return _parse_jagged(ids, schema)
    if isinstance(ids, Mapping):
        return _parse_jagged(_from_dict(ids, schema), schema)
    if all(hasattr(ids, name) for name in ("keys", "values", "lengths")):
        return _parse_jagged(_from_keyed(ids, schema), schema)
    raise SchemaError(
        f"ids must be an int64 tensor [B, {schema.num_features}], a Jagged, a KeyedJaggedTensor "
        f"or a dict of features, got {type(ids).__name__}"
    )


def _parse_dense(ids: Tensor, schema: Schema) -> Tensor:
    if not schema.single_valued:
        names = [feature.name for feature in schema.features if feature.multi]
        raise SchemaError(
            f"features {names} are multi-valued: pass a Jagged, a KeyedJaggedTensor or a dict, "
            "not a dense tensor"
        )
    if ids.dim() != 2 or ids.shape[1] != schema.num_features:
        raise SchemaError(
            f"dense ids must have shape [B, {schema.num_features}] "
            f"({', '.join(schema.names)}), got {list(ids.shape)}"
        )
    ids = _as_int64(ids, "ids")
    if not tracing():
        if ids.shape[0] == 0:
            raise IdError("an empty batch: ids have shape [0, F], at least one sample is needed")
        _check_dense(ids, schema)
    return ids


def _as_int64(ids: Tensor, what: str) -> Tensor:
    if ids.dtype in (torch.int32, torch.int16, torch.uint8, torch.int8):
        return ids.long()
    if ids.dtype != torch.int64:
        raise SchemaError(f"{what} must be int64, got {ids.dtype}; ids never travel as floats")
    return ids


def _last_ids(schema: Schema, device: torch.device) -> Tensor:
    largest = torch.iinfo(torch.int64).max
    last = [largest if f.cardinality is None else f.cardinality - 1 for f in schema.features]
    return torch.tensor(last, device=device)


def _check_dense(ids: Tensor, schema: Schema) -> None:
    # one pass for the extremes is several times cheaper than comparing every id
    low, high = ids.aminmax() if ids.shape[1] == 1 else ids.aminmax(dim=0)
    last = _last_ids(schema, ids.device)
    if bool(((low >= 0) & (high <= last)).all()):
        return
    wrong = (ids < 0) | (ids > last)
    sample, feature = (int(i) for i in wrong.nonzero()[0])
    raise _id_error(schema, feature, int(ids[sample, feature]), f"sample {sample}")


def _id_error(schema: Schema, feature: int, value: int, where: str) -> IdError:
    spec = schema.features[feature]
    allowed = "id >= 0" if spec.cardinality is None else f"0 <= id < {spec.cardinality}"
    return IdError(f"feature {spec.name!r}: id {value} in {where} is out of range ({allowed})")


def _parse_jagged(ids: Jagged, schema: Schema) -> Jagged:
    values = _as_int64(ids.values, "Jagged.values")
    lengths = _as_int64(ids.lengths, "Jagged.lengths")
    if values.dim() != 1 or lengths.dim() != 1 or lengths.numel() % schema.num_features:
        raise SchemaError(
            f"Jagged needs values [N] and lengths [F * B] with F={schema.num_features}, "
            f"got values {list(values.shape)} and lengths {list(lengths.shape)}"
        )
    if not tracing():
        _check_jagged(values, lengths, schema)
    return Jagged(values, lengths)


def _check_jagged(values: Tensor, lengths: Tensor, schema: Schema) -> None:
    if lengths.numel() == 0:
        raise IdError("an empty batch: Jagged.lengths has no entries, at least one sample needed")
    if (lengths < 0).any() or int(lengths.sum()) != values.numel():
        raise SchemaError(
            f"Jagged.lengths must be >= 0 and sum to the number of values {values.numel()}, "
            f"got sum {int(lengths.sum())} and minimum {int(lengths.min())}"
        )
    per_feature = lengths.view(schema.num_features, -1)
    single = torch.tensor([not f.multi for f in schema.features], device=lengths.device)
    if ((per_feature > 1) & single[:, None]).any():
        feature = int(((per_feature > 1) & single[:, None]).nonzero()[0, 0])
        name = schema.names[feature]
        raise SchemaError(
            f"feature {name!r} is single-valued but a sample has {int(per_feature[feature].max())} "
            "ids; declare it with multi=True"
        )
    feature_of = feature_index(lengths, schema.num_features)
    wrong = (values < 0) | (values > _last_ids(schema, values.device)[feature_of])
    if wrong.any():
        position = int(wrong.nonzero()[0])
        where = f"position {position} of Jagged.values"
        raise _id_error(schema, int(feature_of[position]), int(values[position]), where)


def feature_index(lengths: Tensor, num_features: int) -> Tensor:
    """Return the feature of every value, int64 ``[N]``."""
    totals = lengths.view(num_features, -1).sum(1)
    return torch.repeat_interleave(torch.arange(num_features, device=lengths.device), totals)


def _from_dict(ids: Mapping[str, Any], schema: Schema) -> Jagged:
    _check_keys(list(ids), schema)
    values, lengths = [], []
    for feature in schema.features:
        entry = ids[feature.name]
        if isinstance(entry, Tensor):
            entry = (entry, torch.ones_like(entry))
        if not (isinstance(entry, tuple) and len(entry) == 2):
            raise SchemaError(
                f"feature {feature.name!r}: pass a tensor [B] or a pair (values, lengths), "
                f"got {type(entry).__name__}"
            )
        _check_entry(feature.name, *entry)
        values.append(_as_int64(entry[0], f"feature {feature.name!r}: values"))
        lengths.append(_as_int64(entry[1], f"feature {feature.name!r}: lengths"))
        if len(lengths[-1]) != len(lengths[0]):
            raise SchemaError(
                f"feature {feature.name!r} has {len(lengths[-1])} samples, "
                f"feature {schema.names[0]!r} has {len(lengths[0])}"
            )
    return Jagged(torch.cat(values), torch.cat(lengths))


def _check_entry(name: str, values: Any, lengths: Any) -> None:
    if not (isinstance(values, Tensor) and isinstance(lengths, Tensor)):
        raise SchemaError(
            f"feature {name!r}: values and lengths must be tensors, "
            f"got {type(values).__name__} and {type(lengths).__name__}"
        )
    if values.dim() != 1 or lengths.dim() != 1:
        raise SchemaError(
            f"feature {name!r}: values and lengths must have one axis, "
            f"got {list(values.shape)} and {list(lengths.shape)}"
        )
    if not tracing() and int(lengths.sum()) != len(values):
        raise SchemaError(
            f"feature {name!r}: the lengths sum to {int(lengths.sum())}, "
            f"there are {len(values)} values"
        )


def _from_keyed(ids: Any, schema: Schema) -> Jagged:
    if getattr(ids, "weights_or_none", lambda: None)() is not None:
        raise SchemaError("a weighted KeyedJaggedTensor is not supported: drop its weights")
    if getattr(ids, "variable_stride_per_key", bool)():
        raise SchemaError("a KeyedJaggedTensor with another batch size a key is not supported")
    keys = list(ids.keys())
    _check_keys(keys, schema)
    if keys == list(schema.names):
        return Jagged(ids.values(), ids.lengths())
    lengths = ids.lengths().view(len(keys), -1)
    chunks = torch.split(ids.values(), lengths.sum(1).tolist())
    order = [keys.index(name) for name in schema.names]
    return Jagged(torch.cat([chunks[i] for i in order]), lengths[order].reshape(-1))


def _check_keys(keys: list[str], schema: Schema) -> None:
    for key in keys:
        if key not in schema.names:
            raise SchemaError(f"unknown feature {key!r}; {nearest(key, schema.names)}")
        if keys.count(key) > 1:
            raise SchemaError(f"feature {key!r} appears twice in the ids; got {keys}")
    missing = [name for name in schema.names if name not in keys]
    if missing:
        raise SchemaError(f"features {missing} are missing from the ids; got {keys}")
