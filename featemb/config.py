"""`Config`: the base of all method and codec configurations, and the registry of both.

A configuration is a frozen dataclass of JSON-able fields. Its class is its key: the registry maps
names to configuration classes, and every list in the project (tests, docs, command line) is read
from it. Files in `featemb/methods` and `featemb/codecs` are found by themselves; other packages
add methods through the entry-point group ``featemb.methods``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from featemb.errors import ConfigError, nearest


@dataclass(frozen=True)
class Range:
    """The values of a setting that a search tries.

    Attributes:
        low: smallest value, included.
        high: largest value, included; whole numbers where the setting's default is one.
        log: whether a factor counts, not a difference.
        choices: the values themselves, where they are no range.

    Raises:
        ConfigError: there is nothing to choose from.
    """

    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is empty."""
        if not self.choices and not (self.low < self.high and (self.low > 0 or not self.log)):
            raise ConfigError(f"nothing to choose from: {self}")

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if self.choices:
            return any(value == one and type(value) is type(one) for one in self.choices)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Any, ...]:
        """The choices, or the smallest and the largest value."""
        return self.choices or (self.low, self.high)


T = TypeVar("T")


def tunable(
    default: T,
    low: float = 0,
    high: float = 0,
    *,
    log: bool = False,
    choices: Sequence[T] = (),
) -> T:
    """Declare a setting with its default and the values that a search tries (see `Range`).

    A setting that decides the size is none of these: the size is given, or solved for.

    Raises:
        ConfigError: the default is not among the values.
    """
    values = Range(low, high, log, tuple(choices))
    if not values.holds(default):
        raise ConfigError(f"the default {default!r} is not in {values}")
    declared: Any = field(default=default, metadata={"tune": values})
    return cast(T, declared)


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
        for one in fields(self):
            if not _fits(getattr(self, one.name), hints[one.name]):
                kind = one.type if isinstance(one.type, str) else one.type.__name__
                self.require(one.name, f"of type {kind}", holds=False)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(one.name for one in fields(cls))

    @classmethod
    def tunables(cls) -> dict[str, Range]:
        """The settings that declare values to try, and these."""
        return {one.name: one.metadata["tune"] for one in fields(cls) if "tune" in one.metadata}

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
