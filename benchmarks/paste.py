"""A run as text to use again: a ``featemb train`` command, and a sweep's file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from featemb import models
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.grid import TRAIN
from featemb.errors import ConfigError

# What ``featemb train`` has an option for.
OPTIONS = (
    *("dim", "epochs", "batch_size", "lr", "weight_decay", "optimizer", "patience", "anneal"),
    *("rows", "device", "threads", "kernel"),
)
DATA_OPTIONS = ("label", "schema", "root")


def command(config: RunConfig) -> str:
    """Return the command that does a run; settings at their defaults are left out.

    Raises:
        ConfigError: the command has no option for a setting; `toml` has them all.
    """
    changed, options = _changed(config), config.data_options
    missing = [*(changed.keys() - set(OPTIONS)), *(options.keys() - set(DATA_OPTIONS))]
    if missing:
        names = ", ".join(sorted(missing))
        raise ConfigError(f"featemb train has no option for {names}; use a sweep's file")
    words = ["featemb", "train", "--data", config.data, "--model", config.model]
    words += ["--method", config.method]
    for name in ("ratio", "budget"):
        if getattr(config, name) is not None:
            words += [f"--{name}", _value(getattr(config, name)).removesuffix(".0")]
    words += ["--seed", str(config.seed)]
    for name in OPTIONS:
        if name in changed:
            words += [f"--{name.replace('_', '-')}", str(changed[name])]
    for name, value in _model_settings(config).items():
        words += ["--set", f"{name}={_value(value)}"]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)


def toml(config: RunConfig) -> str:
    """Return a sweep's file of one run and its full table, for ``featemb bench``."""
    sweep: dict[str, Any] = {
        "data": [config.data],
        "models": [config.model],
        "methods": [config.method],
    }
    if config.ratio is not None:
        sweep["ratios"] = [config.ratio]
    if config.budget is not None:
        sweep["budgets"] = [config.budget]
    sweep["seeds"] = [config.seed]
    changed = _changed(config)
    tables = {
        "sweep": sweep,
        "train": {name: changed[name] for name in TRAIN if name in changed},
        f"data.{json.dumps(config.data)}": config.data_options,
        f"model.{config.model}": _model_settings(config),
    }
    return "\n".join(_table(name, table) for name, table in tables.items() if table)


def _table(name: str, table: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]
    return "\n".join([f"[{name}]", *lines, ""])


def _value(value: Any) -> str:
    """Write a TOML value: a number, text, truth value, or a list of these."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(one) for one in value)}]"
    # JSON's texts, truth values and lists are TOML's; its numbers as Python writes them
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)


def _changed(config: RunConfig) -> dict[str, Any]:
    """Return the settings of training that are not the defaults."""
    defaults = {one.name: one.default for one in fields(config) if one.default is not MISSING}
    return {
        name: getattr(config, name) for name in TRAIN if getattr(config, name) != defaults[name]
    }


def _model_settings(config: RunConfig) -> dict[str, Any]:
    """Return the model's settings that are not its defaults; TOML has no word for none."""
    defaults = models.find(config.model).config_class().to_dict()
    settings = config.model_config
    return {
        name: value
        for name, value in settings.items()
        if value != defaults[name] and value is not None
    }
