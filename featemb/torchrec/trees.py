"""State of a training as a JSON tree and named tensors, as distributed checkpoints want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from featemb.torchrec.local import LocalRows, Sharded

_PLAIN = (str, int, float, bool, type(None))


def flatten(value: Any) -> tuple[Any, dict[str, Tensor | Sharded]]:
    """Return a JSON-able tree of nested dicts, lists and tuples, and its tensors by name.

    Raises:
        TypeError: a value is neither a container, a tensor, a number nor a text.
    """
    leaves: dict[str, Tensor | Sharded] = {}
    return _flat(value, "", leaves), leaves


def _flat(value: Any, path: str, leaves: dict[str, Tensor | Sharded]) -> Any:
    if isinstance(value, Tensor):
        # files of this format keep no scalars
        leaves[path] = value.detach().reshape(value.shape or (1,)).contiguous()
        shape = list(value.shape)
        return {"kind": "tensor", "name": path, "shape": shape, "dtype": _name(value.dtype)}
    if isinstance(value, Sharded):
        leaves[path] = value
        dtype = value.parts[0].dtype if value.parts else torch.float32
        return {
            "kind": "sharded",
            "name": path,
            "table": value.table,
            "columns": value.columns,
            "dtype": _name(dtype),
        }
    if isinstance(value, Mapping):
        items = [[key, _flat(one, f"{path}/{key}", leaves)] for key, one in value.items()]
        return {"kind": "dict", "items": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        items = [_flat(one, f"{path}/{number}", leaves) for number, one in enumerate(value)]
        return {"kind": kind, "items": items}
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(f"{path}: {type(value).__name__} cannot be written to a checkpoint")


def request(tree: Any, tables: Mapping[str, LocalRows]) -> dict[str, Tensor | Sharded]:
    """Return empty tensors for what a tree names, rows as this process's shards.

    Raises:
        LookupError: there is no such table.
    """
    if not isinstance(tree, Mapping):
        return {}
    if tree["kind"] == "tensor":
        shape = tree["shape"] or [1]
        return {tree["name"]: torch.zeros(shape, dtype=_dtype(tree["dtype"]))}
    if tree["kind"] == "sharded":
        local = tables[tree["table"]]
        return {tree["name"]: local.empty(tree["columns"], _dtype(tree["dtype"]), dist.get_rank())}
    found: dict[str, Tensor | Sharded] = {}
    for item in tree["items"]:
        found |= request(item[1] if tree["kind"] == "dict" else item, tables)
    return found


def unflatten(tree: Any, leaves: Mapping[str, Tensor | Sharded]) -> Any:
    """Return what `flatten` took apart."""
    if not isinstance(tree, Mapping):
        return tree
    if tree["kind"] == "tensor":
        leaf = leaves[tree["name"]]
        assert isinstance(leaf, Tensor)
        return leaf.view(tree["shape"])
    if tree["kind"] == "sharded":
        return leaves[tree["name"]]
    if tree["kind"] == "dict":
        return {key: unflatten(one, leaves) for key, one in tree["items"]}
    values = [unflatten(one, leaves) for one in tree["items"]]
    return values if tree["kind"] == "list" else tuple(values)


def sharded_tensor(one: Sharded) -> Any:
    """Return the tensor as ``torch.distributed.checkpoint`` knows it: shards with their places."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed._shard.sharded_tensor.metadata import (
        ShardedTensorMetadata,
        TensorProperties,
    )
    from torch.distributed._shard.sharded_tensor.shard import Shard

    dtype = one.parts[0].dtype if one.parts else torch.float32
    device = one.parts[0].device.type if one.parts else "cpu"
    parts = iter(one.parts)
    places, local = [], []
    for box in one.boxes:
        part = next(parts) if box.rank == dist.get_rank() else None
        if box.rows == 0:
            continue
        place = ShardMetadata(
            shard_offsets=[box.row, box.column],
            shard_sizes=[box.rows, box.columns],
            placement=f"rank:{box.rank}/{device}",
        )
        places.append(place)
        if part is not None:
            local.append(Shard(part, place))
    about = ShardedTensorMetadata(places, torch.Size(one.whole), TensorProperties(dtype=dtype))
    return ShardedTensor._init_from_local_shards_and_global_metadata(local, about)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype
