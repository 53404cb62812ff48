"""Configurations of the models: frozen dataclasses of JSON-able fields, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from featemb.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Base of the models' configurations; a model without settings uses it as it is."""

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values; ``Config(**config.to_dict()) == config``."""
        values = {name: getattr(self, name) for name in self.field_names()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def require(self, field: str, rule: str, holds: bool) -> None:
        """Refuse a setting unless it holds.

        Raises:
            ConfigError: names the configuration, the field, the rule and the value.
        """
        if not holds:
            value = getattr(self, field)
            raise ConfigError(f"{type(self).__name__}: {field} must be {rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class MLPConfig(ModelConfig):
    """Settings of a model with a multi-layer perceptron.

    Attributes:
        hidden: widths of the hidden layers; empty leaves one linear layer.
        dropout: probability of dropping a hidden unit in training.
        batch_norm: batch normalisation between every linear layer and its ReLU.
    """

    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.1
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_layers(self, "hidden")
        rate = self.dropout
        known = isinstance(rate, (int, float)) and not isinstance(rate, bool)
        self.require("dropout", "a number with 0 <= dropout < 1", known and 0 <= rate < 1)
        check_flag(self, "batch_norm")


def check_flag(config: ModelConfig, field: str) -> None:
    """Check a setting that is on or off."""
    config.require(field, "True or False", isinstance(getattr(config, field), bool))


def check_layers(config: ModelConfig, field: str) -> None:
    """Check a setting that lists layer widths, and make it a tuple (JSON gives lists)."""
    widths = getattr(config, field)
    listed = isinstance(widths, (list, tuple))
    holds = listed and all(is_integer(width) and width >= 1 for width in widths)
    config.require(field, "a list of integers >= 1", holds)
    object.__setattr__(config, field, tuple(widths))


def is_integer(value: Any) -> bool:
    """Whether a value is an int; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)
