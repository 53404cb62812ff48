"""The text grammar of configurations: text <-> configurations, exact both ways.

::

    text    = item { "+" item }
    item    = name [ "(" [ setting { "," setting } ] ")" ]
    setting = name "=" value
    value   = number | word | quoted | "true" | "false" | "none" | mapping
    mapping = "{" [ key ":" value { "," key ":" value } ] "}"

The settings are the fields of the configurations; nothing is listed here a second time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

from featemb.config import Config, find, make
from featemb.errors import ConfigError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))"
    r"|(?P<word>[A-Za-z_][\w.\-]*)|(?P<quoted>\"(?:[^\"\\]|\\.)*\")|(?P<mark>[()+=,{}:]))"
)
_CONSTANTS = {"true": True, "false": False, "none": None}


def read(text: str) -> list[Config]:
    """Read the configurations of a text, in order.

    Raises:
        ConfigError: a name, setting or value is not allowed, or the text does not follow the
            grammar; the message shows where.
    """
    return _Parser(text).items()


def write(config: Config) -> str:
    """Return the text of one configuration: its name and the settings that are not defaults."""
    settings = []
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default or type(value) is not type(default):
            settings.append(f"{field.name}={_write_value(value)}")
    return f"{config.name}({', '.join(settings)})" if settings else config.name


def _write_value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_write_value(k)}: {_write_value(v)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w.\-]*", value) and value not in _CONSTANTS
        return value if plain else json.dumps(value, ensure_ascii=False)
    return repr(value)


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                self._fail(position, "a name, a number or one of ( ) + = , { } :")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()
        self.at = 0

    def _fail(self, position: int, wanted: str) -> NoReturn:
        rest = self.text[position:].strip() or "the end"
        raise ConfigError(
            f"cannot read {self.text!r}: expected {wanted} at position {position}, found {rest!r}"
        )

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _take(self, kinds: tuple[str, ...], wanted: str, exact: str = "") -> tuple[str, str]:
        if self.at >= len(self.tokens):
            self._fail(len(self.text), wanted)
        kind, value, position = self.tokens[self.at]
        if kind not in kinds or (exact and value != exact):
            self._fail(position, wanted)
        self.at += 1
        return kind, value

    def _mark(self, mark: str) -> None:
        self._take(("mark",), repr(mark), mark)

    def items(self) -> list[Config]:
        found = [self._item()]
        while self._peek() == "+":
            self._mark("+")
            found.append(self._item())
        if self.at < len(self.tokens):
            self._fail(self.tokens[self.at][2], "'+' or the end")
        return found

    def _item(self) -> Config:
        _, name = self._take(("word",), "the name of a method or codec")
        find(name)  # an unknown name is the first thing to report
        settings: dict[str, Any] = {}
        if self._peek() == "(":
            self._mark("(")
            while self._peek() != ")":
                _, setting = self._take(("word",), "a setting's name or ')'")
                if setting in settings:
                    raise ConfigError(f"{name}: setting {setting!r} is given twice")
                self._mark("=")
                settings[setting] = self._value()
                if self._peek() != ")":
                    self._mark(",")
            self._mark(")")
        return make(name, settings)

    def _value(self) -> Any:
        if self._peek() == "{":
            return self._mapping()
        kind, value = self._take(("number", "word", "quoted"), "a value")
        if kind == "number":
            whole = re.fullmatch(r"[-+]?[\d_]+", value)
            return self._read(int if whole else float, value)
        return self._read(json.loads, value) if kind == "quoted" else _CONSTANTS.get(value, value)

    def _read(self, read: Callable[[str], Any], value: str) -> Any:
        try:
            return read(value)
        except ValueError as error:  # such as 1__0, or an escape that JSON does not know
            raise ConfigError(f"cannot read {value} in {self.text!r}: {error}") from error

    def _mapping(self) -> dict[str, Any]:
        self._mark("{")
        entries: dict[str, Any] = {}
        while self._peek() != "}":
            kind, key = self._take(("word", "quoted", "number"), "a key or '}'")
            self._mark(":")
            entries[self._read(json.loads, key) if kind == "quoted" else key] = self._value()
            if self._peek() != "}":
                self._mark(",")
        self._mark("}")
        return entries
