"""The tables of a model: where they are, which are one, and which cannot be converted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from featemb.conversion.held import Held, Layer, Table
from featemb.conversion.registry import Replacer, find
from featemb.errors import ConfigError, DataError
from featemb.schema import Schema


@dataclass
class Found:
    """A table and the modules that hold it: several where weights are tied.

    Attributes:
        held: the table, or a layer of featemb.
        modules: the modules; each once.
        replacers: how each is converted.
        paths: all names of all of them, by which a table is chosen.
        refusal: why it cannot be converted.
    """

    held: Held
    modules: list[nn.Module]
    replacers: list[Replacer]
    paths: list[str] = field(default_factory=list)
    refusal: str | None = None

    @property
    def name(self) -> str:
        """The first name."""
        return self.held.name


def find_tables(model: nn.Module) -> list[Found]:
    """Return the tables of a model in the order of its modules.

    Raises:
        ConfigError: the model is compiled.
    """
    by_module: dict[int, Found] = {}
    by_place: dict[Any, Found] = {}
    for path, module in _walk(model, ""):
        if hasattr(module, "_orig_mod"):
            raise ConfigError(
                f"{path or 'the model'!r} is compiled: convert the module inside (_orig_mod), "
                "then compile that"
            )
        entry = find(module)
        if entry is None:
            continue
        if id(module) in by_module:
            by_module[id(module)].paths.append(path)
            continue
        by_module[id(module)] = _entered(path, module, *entry, by_place)
    found = list({id(one): one for one in by_module.values()}.values())
    for one in found:
        one.held = replace(one.held, others=tuple(one.paths[1:]))  # type: ignore[type-var]
    _refuse_ties(model, found)
    return found


def _entered(
    path: str, module: nn.Module, replacer: Replacer, refusal: str | None, places: dict[Any, Found]
) -> Found:
    """Return the entry of a module: a new one, or that of the table that it is tied to."""
    if refusal is not None:
        return Found(_Refused(path, module), [module], [replacer], [path], refusal)
    held = replacer.held(path, module)
    one = places.get(held.place) if isinstance(held, Table) else None
    if one is None:
        one = Found(held, [], [])
        if isinstance(held, Table):
            places[held.place] = one
    elif isinstance(one.held, Table) and isinstance(held, Table):
        norms = [(each.max_norm, each.norm_type) for each in (one.held, held)]
        if norms[0] != norms[1]:
            one.refusal = f"it is tied to {path!r} with another max_norm"
    one.modules.append(module)
    one.replacers.append(replacer)
    one.paths.append(path)
    return one


@dataclass(frozen=True)
class _Refused(Held):
    """What cannot be converted: it is only told of."""

    name: str
    module: nn.Module
    others: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        weight = getattr(self.module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)

    @property
    def dtype(self) -> torch.dtype:
        tensors = (*self.module.parameters(), *self.module.buffers())
        return tensors[0].dtype if tensors else torch.float32

    @property
    def before(self) -> int:
        from featemb.memory import module_bytes

        return sum(module_bytes(self.module).values())


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name, without those inside of one that is converted whole."""
    yield path, module
    if find(module) is None:
        for name, child in module._modules.items():  # named_children() tells of each once
            if child is not None:
                yield from _walk(child, f"{path}.{name}" if path else name)


def _refuse_ties(model: nn.Module, found: list[Found]) -> None:
    """Refuse tables whose numbers are also read by what is not converted."""
    own = {
        id(weight)
        for one in found
        for module in one.modules
        for weight in (*module.parameters(), *module.buffers())
    }
    others: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(module is each for one in found for each in one.modules)
        for name, tensor in _tensors(module):
            if tensor.is_meta or (inside and id(tensor) in own):
                continue
            others.setdefault(tensor.untyped_storage().data_ptr(), f"{path}.{name}".strip("."))
    seen: dict[int, str] = {}
    for one in found:
        if not isinstance(one.held, Table) or one.held.weight.is_meta:
            continue
        place = one.held.weight.untyped_storage().data_ptr()
        if place in others:
            one.refusal = f"its weight is tied to {others[place]!r}, which needs all of it as it is"
        elif place in seen:
            one.refusal = f"it shares memory with {seen[place]!r} and is not the same table"
        seen[place] = one.name


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for group in (module._parameters, module._buffers):
        yield from ((name, one) for name, one in group.items() if one is not None)


def with_counts(found: list[Found], counts: Mapping[str, Any]) -> None:
    """Give tables the counts of their rows.

    Raises:
        ConfigError: no table has a name.
        DataError: counts are no vector of a number a row, at least 0.
    """
    for name, given in counts.items():
        one = next((each for each in found if name in each.paths), None)
        if one is None or isinstance(one.held, _Refused):
            raise ConfigError(f"counts: no table {name!r}; {named(found)}")
        if isinstance(one.held, Layer):
            raise ConfigError(
                f"counts of {name!r}: a layer of featemb takes the counts of its schema"
            )
        held = one.held
        assert isinstance(held, Table)
        vector = torch.as_tensor(given).double()
        if vector.shape != (held.shape[0],) or not bool((vector >= 0).all()):
            raise DataError(
                f"counts of {name!r} must be {held.shape[0]} numbers of at least 0, "
                f"got {list(vector.shape)}"
            )
        if not bool(torch.isfinite(vector).all() and vector.sum() > 0):
            raise DataError(f"counts of {name!r} must be finite, and not all zero")
        one.held = replace(held, counts=vector.to(held.weight.device))


def with_schema(found: list[Found], schema: Schema) -> None:
    """Give frozen layers of featemb a schema with counts, where it is theirs."""
    for one in found:
        held = one.held
        if isinstance(held, Layer) and held.schema.without_counts() == schema.without_counts():
            one.held = replace(held, schema=schema)


def named(found: list[Found]) -> str:
    """Return a list of the tables' names for a message."""
    names = ", ".join(repr(one.name) for one in found[:20])
    return f"tables: {names or 'none'}{', ...' if len(found) > 20 else ''}"
