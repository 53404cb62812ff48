"""Served models in files: all tensors, and in the header what rebuilds the model around them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from featemb import kinds, package
from featemb.errors import ConfigError, FormatError
from featemb.frozen import FrozenEmbedding
from featemb.layer import FeatureEmbedding
from featemb.models.base import CTRModel, ModelContext
from featemb.models.registry import find
from featemb.parts import Source
from featemb.schema import Schema


def save(net: CTRModel, path: str | os.PathLike[str]) -> None:
    """Write a served model to one file, atomically; `load` needs nothing else.

    Args:
        net: what ``freeze`` returns.
        path: target; an existing file is replaced only by a complete new one.

    Raises:
        ConfigError: the model is not frozen.
        FormatError: the target's folder does not exist.
    """
    layers = _layers(net)
    for layer in layers.values():
        if not isinstance(layer, FrozenEmbedding):
            raise ConfigError(f"{net.name}: a model in training is not saved; freeze() it first")
    package.write(path, {"kind": "model", **describe(net)}, net.state_dict())


def describe(net: CTRModel) -> dict[str, Any]:
    """Return all of a served model but its tensors, JSON-able: what `rebuild` makes it from."""
    return {
        "model": net.name,
        "config": net.config.to_dict(),
        "numeric": net.numeric,
        "built_widths": net.built_widths,
        "layers": {
            name: cast(FrozenEmbedding, layer).describe() for name, layer in _layers(net).items()
        },
    }


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> CTRModel:
    """Read a model that `save` wrote, or that was exported to a safetensors package.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, corrupt, holds a
            single layer, or a model that is not known here.
    """
    header, tensors = package.read(path, "model")
    try:
        return rebuild(header, package.own(tensors)).to(device)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)!r}: {error}") from error


def rebuild(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CTRModel:
    """Make a model from `describe`'s tree and tensors named as in its state dict.

    Raises:
        FormatError: the model is not known here, or its tensors do not fit.
    """
    try:
        net = _outline(header)
        layers = {
            name: FrozenEmbedding.rebuild(tree, tensors, f"{name}.")
            for name, tree in header["layers"].items()
        }
    except (ConfigError, KeyError, TypeError) as error:
        raise FormatError(f"the file holds a model that is not known: {error}") from error
    for name, layer in layers.items():
        setattr(net, name, layer)
    widths = net.embedding.widths
    if widths != net.built_widths and not net.keep_widths(widths):
        raise FormatError(f"{net.name} cannot read vectors of {widths}")
    _fill(net, tensors)
    return net.eval().requires_grad_(False)


def _layers(net: CTRModel) -> dict[str, nn.Module]:
    inside = {id(layer) for layer in net.embeddings()}
    return {name: child for name, child in net.named_children() if id(child) in inside}


class _Outline(FrozenEmbedding):
    """Stands for the layers while a model is built around them: widths, and no tensors."""

    def __init__(self, schema: Schema, dim: int, widths: Sequence[int]) -> None:
        super().__init__(schema, dim, widths, cast(Source, nn.Identity()))

    def companion(self, dim: int) -> _Outline:
        """Stand for a companion."""
        return _Outline(self.schema, dim, (dim,) * len(self.widths))


def _outline(header: Mapping[str, Any]) -> CTRModel:
    """Build the model without its layers; the values of its weights do not matter."""
    model = find(header["model"])
    tree = header["layers"]["embedding"]
    schema = Schema.from_json(json.dumps(tree["schema"]))
    layer = cast(FeatureEmbedding, _Outline(schema, tree["dim"], header["built_widths"]))
    context = ModelContext(layer, header["numeric"], torch.Generator().manual_seed(0))
    return model(context, model.config_class(**header["config"]))


def _fill(net: CTRModel, tensors: Mapping[str, Tensor]) -> None:
    own = net.state_dict()
    for name in sorted(set(own) ^ set(tensors)):
        raise FormatError(f"tensor {name!r} is not that of {net.name}")
    for name, one in own.items():
        if one.shape != tensors[name].shape or one.dtype != tensors[name].dtype:
            raise FormatError(
                f"tensor {name!r} is {tensors[name].dtype} "
                f"{list(tensors[name].shape)}, {net.name} has {one.dtype} {list(one.shape)}"
            )
    net.load_state_dict(tensors)


kinds.register(
    kinds.Kind(
        "model",
        lambda module: isinstance(module, CTRModel),
        describe,
        rebuild,
    )
)
