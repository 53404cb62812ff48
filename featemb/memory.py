"""`Memory`: bytes by part, read from the tensors that really exist.

A plan runs the same code on layers whose tensors are on the meta device, so there is no second
formula that could drift from the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """Bytes of an embedding layer, for serving and for training.

    Attributes:
        parts: serving bytes by part (rows, codes, scales, ...): what ``freeze()`` holds.
        training_parts: training bytes by part: parameters, buffers, gradients that exist now and,
            where an optimizer was given, its state.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    training_parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def serving(self) -> int:
        """Bytes that must be resident to serve."""
        return sum(self.parts.values())

    @property
    def training(self) -> int:
        """Bytes that are resident in training, without activations."""
        return sum(self.training_parts.values())

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            _add(self.parts, other.parts), _add(self.training_parts, other.training_parts)
        )


def _add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {
        k: left.get(k, 0) + right.get(k, 0) for k in (*left, *(k for k in right if k not in left))
    }


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor's elements take (a sparse tensor: its indices and values)."""
    if tensor.layout == torch.sparse_coo:
        return tensor_bytes(tensor._indices()) + tensor_bytes(tensor._values())
    return tensor.numel() * tensor.element_size()


def module_bytes(module: nn.Module) -> dict[str, int]:
    """Bytes of a module's parameters and buffers by part; a shared tensor counts once.

    A module names the parts of its own tensors in a class attribute
    ``memory_parts: dict[tensor name, part]``; others count under "parameters" and "buffers". Where
    parts share a tensor, ``memory_columns: dict[tensor name, dict[part, columns]]`` divides it.
    """
    parts: dict[str, int] = {}
    seen: set[int] = set()
    for owner in module.modules():
        names: Mapping[str, str] = getattr(owner, "memory_parts", {})
        columns: Mapping[str, Mapping[str, int]] = getattr(owner, "memory_columns", {})
        for default, tensors in (
            ("parameters", owner.named_parameters(recurse=False)),
            ("buffers", owner.named_buffers(recurse=False)),
        ):
            for name, tensor in tensors:
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    for part, own in _divided(tensor, names.get(name, default), columns.get(name)):
                        _count(parts, part, own)
    return parts


def _divided(
    tensor: Tensor, part: str, columns: Mapping[str, int] | None
) -> list[tuple[str, Tensor]]:
    if columns is None:
        return [(part, tensor)]
    ends = list(accumulate(columns.values()))
    return list(zip(columns, tensor.tensor_split(ends[:-1], dim=-1), strict=True))


def training_bytes(
    module: nn.Module, optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None
) -> dict[str, int]:
    """`module_bytes` plus gradients that exist and the optimizer's state of these parameters."""
    parts = module_bytes(module)
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer or ()
    for parameter in module.parameters():
        if parameter.grad is not None:
            _count(parts, "gradients", parameter.grad)
        for one in optimizers:
            for value in one.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    _count(parts, "optimizer state", value)
    return parts


def _count(parts: dict[str, int], part: str, tensor: Tensor) -> None:
    parts[part] = parts.get(part, 0) + tensor_bytes(tensor)
