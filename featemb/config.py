"""`Config`: the base of all method and codec configurations, and the registry of both.

A configuration is a frozen dataclass of JSON-able fields. Its class is its key: the registry maps
names to configuration classes, and every list in the project (tests, docs, command line) is read
from it. Files in `featemb/methods` and `featemb/codecs` are found by themselves; other packages
add methods through the entry-point group ``featemb.methods``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from featemb.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations.

    Attributes:
        name: word of the text grammar, and the registered name.
        kind: "method" or "codec".
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "codec"

    def __post_init__(self) -> None:
        """Check every setting's type; subclasses check their ranges on top."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            if not _fits(getattr(self, field.name), hints[field.name]):
                kind = field.type if isinstance(field.type, str) else field.type.__name__
                self.require(field.name, f"of type {kind}", holds=False)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in fields(cls))

    def require(self, field: str, rule: str, holds: bool) -> None:
        """Refuse a setting unless it holds: one form of error for all configurations.

        Raises:
            ConfigError: names the configuration, the field, the rule and the value.
        """
        if not holds:
            value = getattr(self, field)
            raise ConfigError(f"{self.name}: {field} must be {rule}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a field's type; an int is a good float, a bool is no int."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(
            _fits(k, key) and _fits(v, item) for k, v in value.items()
        )
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


# Imported now, while they are empty packages: an import at discovery would set the attributes
# featemb.methods and featemb.codecs, which are the public functions of these names by then.
PACKAGES = [importlib.import_module(name) for name in ("featemb.methods", "featemb.codecs")]

_REGISTRY: dict[str, type[Config]] = {}
_discovered = False

C = TypeVar("C", bound=type[Config])


def register(config: C) -> C:
    """Class decorator: enter a configuration into the registry under its ``name``."""
    known = _REGISTRY.setdefault(config.name, config)
    same = (known.__module__, known.__qualname__) == (config.__module__, config.__qualname__)
    if not same:
        raise ConfigError(f"the name {config.name!r} is registered twice: {known} and {config}")
    return config


def discover() -> None:
    """Import every method and codec, once: their configurations and parts are known then."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for package in PACKAGES:
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{found.name}")
    for point in entry_points(group="featemb.methods"):
        point.load()


def names(kind: str) -> list[str]:
    """Return the registered names of a kind, sorted."""
    discover()
    return sorted(name for name, config in _REGISTRY.items() if config.kind == kind)


def find(name: str) -> type[Config]:
    """Return a configuration class by its name.

    Raises:
        ConfigError: the name is unknown; the message holds the nearest one.
    """
    discover()
    if name not in _REGISTRY:
        raise ConfigError(f"unknown method or codec {name!r}; {nearest(name, _REGISTRY)}")
    return _REGISTRY[name]


def make(name: str, settings: dict[str, Any]) -> Config:
    """Build a configuration from its name and settings.

    Raises:
        ConfigError: the name or a setting is unknown, or a value is not allowed.
    """
    config = find(name)
    for setting in settings:
        if setting not in config.field_names():
            hint = nearest(setting, config.field_names())
            raise ConfigError(f"{name}: unknown setting {setting!r}; {hint}")
    return config(**settings)
