"""The tables of a layer: what a device plan places, with all of the layer's bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from torch import Tensor

from featemb.errors import ConfigError, nearest
from featemb.layer import FeatureEmbedding
from featemb.memory import tensor_bytes
from featemb.optim import build

Use = Literal["training", "serving"]
SMALL = 2**20  # bytes; tensors up to this size are on every device that computes


@dataclass(frozen=True)
class Table:
    """Rows that can be divided among devices, or a part that every device needs whole.

    Attributes:
        name: of the module that holds it, and of the feature where it is one feature's.
        rows: number of rows; of a part that cannot be divided, 1.
        size: bytes, optimizer state included where it is for training.
        lookups: rows of it that a sample reads, about: of a shared table one a feature, of a
            multi-valued feature its longest bag.
        replicated: whether every device that computes holds it.
    """

    name: str
    rows: int
    size: int
    lookups: int
    replicated: bool

    @property
    def heat(self) -> float:
        """Reads a byte: what is hot belongs on the fastest memory."""
        return self.lookups / max(1, self.size)


def tables(
    layer: FeatureEmbedding, use: Use = "training", optimizer: str = "row_adam"
) -> list[Table]:
    """Return the tables of a layer; their bytes add up to ``layer.memory(...)``'s.

    Training counts parameters, buffers and the optimizer's state. Serving shares the frozen form's
    bytes out among the same tables, in proportion to what they take in training without the state:
    which rows a pruning method keeps is not known before.

    Args:
        layer: also on the meta device.
        use: what the bytes are for.
        optimizer: whose state counts, as in `featemb.optim.build`.

    Raises:
        ConfigError: the use or the optimizer is unknown.
    """
    if use not in get_args(Use):
        raise ConfigError(f"unknown use {use!r}; {nearest(str(use), get_args(Use))}")
    held = list(_held(layer, optimizer))
    if use == "training":
        sizes = [weights + state for _, _, weights, state in held]
    else:
        sizes = shares(layer.memory().serving, [weights for _, _, weights, _ in held])
    found: list[Table] = []
    for (name, rows, _, _), size in zip(held, sizes, strict=True):
        found += _tables(layer, name, rows, size)
    return found


def _held(layer: FeatureEmbedding, optimizer: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, rows, bytes and bytes of state of each module's tensors of equal rows."""
    state = _state_bytes(layer, optimizer)
    seen: set[int] = set()
    for path, module in layer.named_modules():
        groups: dict[int, list[Tensor]] = {}
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                groups.setdefault(_rows(tensor), []).append(tensor)
        for rows, tensors in groups.items():
            weights = sum(map(tensor_bytes, tensors))
            yield path, rows, weights, sum(state.get(id(tensor), 0) for tensor in tensors)


def _rows(tensor: Tensor) -> int:
    """Return the rows of a table; a stack of matrices is a network, which every sample reads."""
    return tensor.shape[0] if 1 <= tensor.dim() <= 2 else 1


def _state_bytes(layer: FeatureEmbedding, optimizer: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for split in ("train", "held_out"):
        for one in build(layer, 1.0, optimizer, split=split):
            one.allocate()  # type: ignore[attr-defined]
            for parameter, values in one.state.items():
                tensors = (value for value in values.values() if isinstance(value, Tensor))
                size = sum(map(tensor_bytes, tensors))
                found[id(parameter)] = found.get(id(parameter), 0) + size
    return found


def _tables(layer: FeatureEmbedding, name: str, rows: int, size: int) -> list[Table]:
    """Divide rows that are those of the features, one after another, by features."""
    longest = [feature.max_length or 1 for feature in layer.schema.features]
    if rows <= 1 or size <= SMALL:
        return [Table(name, 1, size, len(longest), replicated=True)] if size else []
    if not layer.schema.bounded or rows != sum(layer.schema.cardinalities):
        return [Table(name, rows, size, sum(longest), replicated=False)]
    counts = layer.schema.cardinalities
    sizes = shares(size, counts)
    return [
        Table(f"{name}:{feature}", count, part, lookups, replicated=False)
        for feature, count, part, lookups in zip(
            layer.schema.names, counts, sizes, longest, strict=True
        )
    ]


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Divide an integer in proportion to weights, exactly: the parts add up to it."""
    whole = sum(weights)
    if not whole:
        return [total, *(0 for _ in weights[1:])]
    ends = [total * done // whole for done in accumulate(weights)]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
