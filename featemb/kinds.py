"""Kinds of served modules: what a package holds besides tensors, and how it is rebuilt.

The core knows one kind, the frozen layer. A package above it registers its own (`register`), and is
imported when a file asks for a kind by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featemb.errors import FormatError, nearest

# Kinds of packages above the core, by the module that registers them.
_ABOVE = {"model": "featemb.models"}


@dataclass(frozen=True)
class Kind:
    """One kind of served module.

    Attributes:
        name: as in the header of a package.
        holds: whether a module is of this kind.
        describe: a module to a JSON-able tree, all but the tensors.
        rebuild: tree and tensors (named as in the state dict) to a module in eval mode; raises
            FormatError where they do not fit.
    """

    name: str
    holds: Callable[[nn.Module], bool]
    describe: Callable[[Any], Mapping[str, Any]]
    rebuild: Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]


_KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Enter a kind."""
    _KINDS[kind.name] = kind


def of(module: nn.Module) -> Kind | None:
    """Return the kind of a module, or None: then no package can rebuild it."""
    return next((kind for kind in _KINDS.values() if kind.holds(module)), None)


def find(name: str) -> Kind:
    """Return a kind by name.

    Raises:
        FormatError: there is none of that name.
    """
    if name not in _KINDS and name in _ABOVE:
        importlib.import_module(_ABOVE[name])
    if name == "converted":
        raise FormatError("a converted model of another library: featemb.load_converted reads it")
    if name not in _KINDS:
        raise FormatError(f"unknown kind {name!r}; {nearest(str(name), {*_KINDS, *_ABOVE})}")
    return _KINDS[name]
