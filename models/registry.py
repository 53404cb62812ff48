"""The registry of models, and `build`.

A file in this folder is found by itself; a model outside of it is known once its module has been
imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch

import featemb.models
from featemb.errors import ConfigError, nearest
from featemb.layer import FeatureEmbedding
from featemb.models.base import CTRModel, ModelContext
from featemb.starting import are_rows_later

M = TypeVar("M", bound=type[CTRModel])

_REGISTRY: dict[str, type[CTRModel]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator: enter a `CTRModel` into the registry.

    Raises:
        ConfigError: another model has the name.
    """

    def enter(model: M) -> M:
        known = _REGISTRY.setdefault(name, model)
        if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
            raise ConfigError(f"the model name {name!r} is registered twice: {known} and {model}")
        _REGISTRY[name] = model
        model.name = name
        return model

    return enter


def _discover() -> None:
    for found in pkgutil.iter_modules(featemb.models.__path__):
        importlib.import_module(f"featemb.models.{found.name}")


def names() -> list[str]:
    """Return the names of all models, sorted."""
    _discover()
    return sorted(_REGISTRY)


def find(name: str) -> type[CTRModel]:
    """Return a model's class by its name.

    Raises:
        ConfigError: the name is unknown; the message holds the nearest one.
    """
    _discover()
    if name not in _REGISTRY:
        raise ConfigError(f"unknown model {name!r}; {nearest(str(name), _REGISTRY)}")
    return _REGISTRY[name]


def config_fields(name: str) -> dict[str, Any]:
    """Return a model's settings with their defaults, JSON-able.

    Raises:
        ConfigError: the name is unknown.
    """
    return find(name).config_class().to_dict()


def build(
    name: str,
    *,
    embedding: FeatureEmbedding,
    numeric: int | None = None,
    seed: int = 0,
    **config: Any,
) -> CTRModel:
    """Build a model around an embedding layer.

    Initial weights come from a generator of this seed alone. Dropout in training draws from
    torch's global generator, as everywhere in torch: call ``torch.manual_seed`` to fix it.

    Args:
        name: see `names`.
        embedding: the layer; the model owns it. The model is put on its device.
        numeric: number of numeric columns, M; None takes the schema's.
        seed: source of the initial weights.
        config: the model's settings, see `config_fields`.

    Raises:
        ConfigError: the name, a setting or a value is not allowed, or the layer's widths are
            unequal and the model needs equal ones.
    """
    model = find(name)
    if not isinstance(embedding, FeatureEmbedding):
        raise ConfigError(
            f"{name}: embedding must be a layer of featemb.embedding(...), "
            f"got {type(embedding).__name__}"
        )
    numeric = len(embedding.schema.numeric) if numeric is None else numeric
    for setting, value in (("numeric", numeric), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name}: {setting} must be an integer >= 0, got {value!r}")
    allowed = model.config_class.field_names()
    for setting in config:
        if setting not in allowed:
            raise ConfigError(f"{name}: unknown setting {setting!r}; {nearest(setting, allowed)}")
    generator = torch.Generator().manual_seed(seed)
    net = model(ModelContext(embedding, numeric, generator), model.config_class(**config))
    if are_rows_later():  # they have no device yet
        return net
    for parameter in embedding.parameters():
        return net.to(parameter.device)
    return net
