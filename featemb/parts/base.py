"""`Part`: a small module that can be written to a file and rebuilt without its method's code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from featemb.errors import FormatError, nearest

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

_KINDS: dict[str, type[Part]] = {}


class Part(nn.Module):
    """A module declared by its annotated fields, in the manner of a dataclass.

    Every annotation of a subclass is a field, given to the constructor by keyword:
    ``Tensor`` fields become buffers, or parameters where a parameter is given; ``nn.Module`` fields
    children and ``nn.ModuleList`` fields lists of children (in a frozen layer they are parts),
    everything else is a setting that JSON can hold (numbers, strings, tuples of these). A part's
    class name is its kind in files.

    Attributes:
        by_number: whether it reads the tables that it holds by row numbers alone, in every call
            and never as a whole: then their rows may live on several devices in training.
        computes: whether its answers cost more than finding the distinct ids of a batch: a layer
            that is not in training then asks it for each of them once (see `featemb.once`).
        finds_distinct: whether it does that itself.
    """

    memory_parts: ClassVar[dict[str, str]] = {}
    by_number: ClassVar[bool] = False
    computes: ClassVar[bool] = False
    finds_distinct: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        known = _KINDS.setdefault(cls.__name__, cls)
        if not issubclass(cls, known):  # torch.export wraps a module in a subclass of its name
            raise TypeError(f"a part named {cls.__name__!r} exists already")

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        declared = self.fields()
        if set(fields) != set(declared):
            raise TypeError(f"{type(self).__name__} takes {sorted(declared)}, got {sorted(fields)}")
        for name, value in fields.items():
            if declared[name] is Tensor and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            elif declared[name] is nn.ModuleList:
                setattr(self, name, nn.ModuleList(value))
            else:
                setattr(self, name, tuple(value) if isinstance(value, list) else value)

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Return the declared fields and their types, those of base parts first."""
        return dict(_fields(cls))  # type: ignore[arg-type]  # every class hashes

    def frozen(self, codec: Codec) -> Part:
        """Return the part as it is served: tensors copied, tables of rows encoded by a codec."""
        fields: dict[str, Any] = {}
        for name, hint in self.fields().items():
            value = getattr(self, name)
            if hint is Tensor:
                value = value.detach().clone()
            elif isinstance(value, nn.ModuleList):
                value = [one.frozen(codec) for one in value]  # type: ignore[operator]  # a part
            elif isinstance(value, nn.Module):
                value = value.frozen(codec)  # type: ignore[operator]  # a part or a table
            fields[name] = value
        return type(self)(**fields)

    def describe(self) -> dict[str, Any]:
        """Return the part's structure as a JSON-able tree, without tensors."""
        tree: dict[str, Any] = {"kind": type(self).__name__}
        for name, kind in self.fields().items():
            if kind is not Tensor:
                tree[name] = _described(getattr(self, name))
        return tree

    @staticmethod
    def rebuild(tree: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "") -> Part:
        """Build a part from `describe`'s tree and the state dict's tensors.

        Raises:
            FormatError: a kind is unknown, or a field or tensor is missing.
        """
        kind = tree.get("kind")
        if kind not in _KINDS:
            raise FormatError(f"unknown part {kind!r}; {nearest(str(kind), _KINDS)}")
        fields: dict[str, Any] = {}
        for name, hint in _KINDS[kind].fields().items():
            source: Mapping[str, Any] = tensors if hint is Tensor else tree
            key = prefix + name if hint is Tensor else name
            if key not in source:
                raise FormatError(f"part {kind!r} lacks its field {key!r}")
            fields[name] = _rebuilt(source[key], tensors, f"{prefix}{name}.")
        return _KINDS[kind](**fields)


@cache
def _fields(kind: type[Part]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed([base for base in kind.__mro__ if issubclass(base, Part)]):
        names = get_annotations(base)
        hints = get_type_hints(base)
        found |= {name: hints[name] for name in names if "ClassVar" not in str(names[name])}
    return found


def _described(value: Any) -> Any:
    if isinstance(value, nn.ModuleList):
        return [_described(one) for one in value]
    return value.describe() if isinstance(value, Part) else value


def _rebuilt(value: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return Part.rebuild(value, tensors, prefix)
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return [_rebuilt(one, tensors, f"{prefix}{i}.") for i, one in enumerate(value)]
    return value


class Source(Part):
    """A part that maps (ids, feature) to vectors: what a whole layer is, or a branch of it."""

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]`` for int64 ids ``[...]`` and broadcastable features."""
        raise NotImplementedError

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]`` for ids ``[B, F]``: column f belongs to feature f."""
        vectors: Tensor = self(ids, torch.arange(ids.shape[1], device=ids.device))
        return vectors

    def used_widths(self, num_features: int, dim: int) -> tuple[int, ...]:
        """Return how many of its D numbers, the first ones, each feature uses: all others are zero.

        A source that fills vectors up with zeros says so here, for `FrozenEmbedding.narrowed`.
        """
        return (dim,) * num_features
