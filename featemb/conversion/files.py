"""Converted models in files: all tensors, and in the header what rebuilds the tables.

The net's own code is not in the file: `load_converted` takes an untrained instance of the model,
which may lie on the meta device, and fills it. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featemb import package
from featemb.config import discover
from featemb.conversion.coded import CodedTable
from featemb.conversion.copying import put_in_place
from featemb.conversion.held import storage_of
from featemb.conversion.registry import Replacer, find, find_built
from featemb.conversion.report import Conversion, attach, conversion, tensors
from featemb.errors import FormatError
from featemb.frozen import FrozenEmbedding
from featemb.parts import Part

KIND = "converted"


def save_converted(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a converted model to one safetensors file, atomically.

    Args:
        model: what `featemb.convert` returned, or `load_converted`.
        path: target; an existing file is replaced only by a complete new one.

    Raises:
        ConfigError: the model is not a converted one.
        FormatError: the target's folder does not exist.
    """
    report = conversion(model)
    stored: dict[int, dict[str, Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        replacer = find_built(module)
        if replacer is not None:
            one = replacer.stored(module)
            entry = stored.setdefault(
                id(one), {"at": _inside(name, module, one), **_described(one), "modules": {}}
            )
            settings = {"kind": replacer.kind, **replacer.describe(module)}
            entry["modules"][name] = settings
    held, aliases = _without_repeats(model.state_dict())
    header = {
        "kind": KIND,
        "model": type(model).__name__,
        "tables": list(stored.values()),
        "aliases": aliases,
        "report": report.to_dict(),
    }
    package.write(path, header, held)


def _inside(name: str, module: nn.Module, stored: nn.Module) -> str:
    """Return the prefix of the names of a stored table's tensors."""
    own = next(inner for inner, each in module.named_modules() if each is stored)
    return "".join(f"{part}." for part in (name, own) if part)


def _described(stored: nn.Module) -> dict[str, Any]:
    if isinstance(stored, FrozenEmbedding):
        return {"layer": stored.describe()}
    assert isinstance(stored, CodedTable)
    assert isinstance(stored.rows, Part)
    return {
        "rows": stored.rows.describe(),
        "shape": [stored.num_rows, stored.width],
        "dtype": str(stored.like.dtype).removeprefix("torch."),
        "name": stored.name,
    }


def _without_repeats(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor under one name, and the other names of those that have several."""
    held: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    storages: set[int] = set()
    for name, one in state.items():
        place = storage_of(one) if one.numel() else name
        if place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        memory = one.untyped_storage().data_ptr()
        held[name] = one.clone() if memory in storages else one  # views of one memory
        storages.add(memory)
    return held, aliases


@torch.no_grad()
def load_converted(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Fill an untrained model from a file that `save_converted` wrote.

    ::

        with torch.device("meta"):  # so that its large tables take no memory
            model = MyModel(...)
        model = fe.load_converted("small.safetensors", model)

    Args:
        path: the file.
        model: an instance of the model that was converted, whatever its weights are; it is changed.

    Returns:
        The model in eval mode (another module only where the model itself is a table).

    Raises:
        FormatError: the file is missing, of another format or a newer version, corrupt, or of
            another model; the model is then as it was.
    """
    header, held = package.read(path, KIND)
    try:
        state = held | {name: held[first] for name, first in header["aliases"].items()}
        report = Conversion.from_dict(header["report"])
        swaps = _swaps(header["tables"], state, model)
    except (KeyError, TypeError) as error:
        raise FormatError(f"{os.fspath(path)!r} tells of no converted model: {error!r}") from error
    replaced = [f"{name}." if name else "" for one in header["tables"] for name in one["modules"]]
    _check_rest(path, model, state, replaced)
    on_meta = any(one.is_meta for one in model.state_dict().values())
    made = put_in_place(model, swaps)
    made.load_state_dict(state, assign=on_meta)
    for name, one in made.named_buffers():
        if one.is_meta:
            raise FormatError(
                f"buffer {name!r} is not saved with {type(made).__name__}: build the model on a "
                "real device"
            )
    return attach(made.eval(), report)


def _swaps(
    entries: list[dict[str, Any]], state: Mapping[str, Tensor], model: nn.Module
) -> dict[nn.Module, nn.Module]:
    discover()  # parts are defined beside the codecs that make them
    swaps: dict[nn.Module, nn.Module] = {}
    for entry in entries:
        stored = _rebuilt(entry, state)
        for name, settings in entry["modules"].items():
            module, replacer = _module(model, name, settings["kind"])
            if module not in swaps:
                own = replacer.rebuild(module, settings, stored)
                device = next((one.device for one in tensors(module)), None)
                at = None if device is None or device.type == "meta" else device
                swaps[module] = own if at is None else own.to(at)
    return swaps


def _module(model: nn.Module, name: str, kind: str) -> tuple[nn.Module, Replacer]:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise FormatError(f"the model has no module {name!r}, the file has") from error
    found = find(module)
    if found is None or found[0].kind != kind:
        raise FormatError(
            f"module {name!r} is a {type(module).__name__}, the file has one of kind {kind!r}"
        )
    return module, found[0]


def _rebuilt(entry: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    if "layer" in entry:
        return FrozenEmbedding.rebuild(entry["layer"], state, entry["at"]).eval()
    rows = Part.rebuild(entry["rows"], state, f"{entry['at']}rows.")
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"there is no type of numbers {entry['dtype']!r}")
    num_rows, width = entry["shape"]
    return CodedTable(rows, num_rows, width, dtype, entry["name"])


def _check_rest(
    path: str | os.PathLike[str],
    model: nn.Module,
    state: Mapping[str, Tensor],
    replaced: list[str],
) -> None:
    """Check that all but the tables is in the model and in the file alike."""

    def rest(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {k: one for k, one in tensors.items() if not k.startswith(tuple(replaced))}

    own, found = rest(model.state_dict()), rest(state)
    for name in sorted(set(own) ^ set(found)):
        where = "the model" if name in own else "the file"
        raise FormatError(f"{os.fspath(path)!r}: only {where} has a tensor {name!r}")
    for name, one in own.items():
        if one.shape != found[name].shape or one.dtype != found[name].dtype:
            raise FormatError(
                f"{os.fspath(path)!r}: tensor {name!r} is {found[name].dtype} "
                f"{list(found[name].shape)}, the model has {one.dtype} {list(one.shape)}"
            )
