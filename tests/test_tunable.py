"""The values that methods declare for a search: they hold the defaults, and can be built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from featemb.build import embedding
from featemb.check.case import SINGLE
from featemb.config import Config, Range, find, names, tunable
from featemb.errors import BudgetError, ConfigError
from featemb.grammar import read, write
from featemb.layer import MethodConfig

METHODS = names("method")


def method(name: str) -> MethodConfig:
    found = find(name)()
    assert isinstance(found, MethodConfig)
    return found


def refused(config: MethodConfig) -> str | None:
    """Build at a tenth of the full table; say why it cannot be done."""
    ratio = 10 if config.knob is not None else None
    try:
        layer = embedding(SINGLE, write(config), dim=8, ratio=ratio, device="meta")
    except (BudgetError, ConfigError) as error:
        return f"{type(error).__name__}: {error}"
    assert ratio is None or layer.memory().serving <= SINGLE.full_bytes(8) / ratio
    return None


DECLARED = [(name, setting) for name in METHODS for setting in find(name).tunables()]


def test_every_method_has_something_to_tune() -> None:
    assert {name for name, _ in DECLARED} == set(METHODS)


@pytest.mark.parametrize(("name", "setting"), DECLARED)
def test_declared_values(name: str, setting: str) -> None:
    config = method(name)
    assert setting != config.knob, "the size is solved for"
    values = config.tunables()[setting]
    assert values.holds(getattr(config, setting))
    assert len(set(values.ends)) == len(values.ends) > 1
    for value in values.ends:
        number = isinstance(getattr(config, setting), float) and not values.choices
        other = replace(config, **{setting: float(value) if number else value})
        assert read(write(other)) == [other]
        told = refused(other)
        assert told is None or setting in told or (told.startswith("Budget") and name in told)


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    name: ClassVar[str] = "example"
    steps: int = tunable(10, 1, 100, log=True)
    rule: str | None = tunable(None, choices=(None, "a"))
    free: float = 0.5


def test_a_declared_setting_is_an_ordinary_one() -> None:
    assert Example() == Example(steps=10, rule=None)
    assert write(Example()) == "example"
    assert write(Example(steps=7)) == "example(steps=7)"
    assert Example.tunables() == {
        "steps": Range(1, 100, log=True),
        "rule": Range(choices=(None, "a")),
    }
    with pytest.raises(ConfigError, match="steps must be of type int"):
        Example(steps="many")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("default", "settings", "message"),
    [
        (5, {"low": 6, "high": 9}, "the default 5 is not in"),
        ("c", {"choices": ("a", "b")}, "the default 'c' is not in"),
        (True, {"choices": (0, 1)}, "the default True is not in"),
        (1, {"low": 3, "high": 2}, "nothing to choose from"),
        (0.0, {"low": 0.0, "high": 1.0, "log": True}, "nothing to choose from"),
        (1, {}, "nothing to choose from"),
    ],
)
def test_a_wrong_declaration_is_refused(
    default: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tunable(default, **settings)
