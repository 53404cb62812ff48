"""Which runs a text means: a run's folder, a run id, or ``METHOD@SIZE`` over its seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featemb.benchmarks.groups import Group, Record, asked_size, group_runs
from featemb.benchmarks.records import read, read_all
from featemb.budget import parse_bytes
from featemb.errors import ConfigError, RunError, nearest
from featemb.spec import parse

_NEAR = 1e-3  # a ratio of 10/3 may be written 3.333


@dataclass(frozen=True)
class Selection:
    """The runs that a text means.

    Attributes:
        label: what to call them.
        folder: that holds the runs' folders.
        runs: records by seed.
        single: whether one run was named, and not a method and size over its seeds.
    """

    label: str
    folder: Path
    runs: Mapping[int, Record]
    single: bool = False


@dataclass(frozen=True)
class Filters:
    """What runs must have to be meant.

    Attributes:
        data: data set.
        model: model.
        seeds: seeds to keep; none keeps all.
        settings: settings of the configuration, by name.
    """

    data: str | None = None
    model: str | None = None
    seeds: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def keeps(self, record: Record) -> bool:
        """Whether a run is meant."""
        config = record["config"]
        return (
            self.data in (None, config["data"])
            and self.model in (None, config["model"])
            and (not self.seeds or config["seed"] in self.seeds)
            and all(config.get(name) == value for name, value in self.settings.items())
        )


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` texts; a value is JSON, or else the text itself.

    Raises:
        ConfigError: a text has no name or no value.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.strip() and equals):
            raise ConfigError(f"cannot read the setting {text!r}; write NAME=VALUE")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value
    return settings


class Selector:
    """Finds runs by text.

    Args:
        runs_dir: folder of runs for run ids and ``METHOD@SIZE``; None allows run folders alone.
        filters: what runs of a method must have.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, runs_dir: Path | None = None, filters: Filters | None = None) -> None:
        self.folder = runs_dir
        self.filters = filters or Filters()
        found = read_all(runs_dir).records.values() if runs_dir else ()
        self.groups = group_runs(record for record in found if self.filters.keeps(record))

    def select(self, text: str) -> Selection:
        """Return the runs that a text means.

        Raises:
            RunError: it is no finished run, or the folder has no such runs, or several kinds.
            ConfigError: the text is not ``METHOD@SIZE``.
        """
        for path in (Path(text), *([self.folder / text] if self.folder else ())):
            if (path / "run.json").is_file():
                return _one_run(path)
        if self.folder is None:
            raise RunError(
                f"{text!r} is not the folder of a run; name a folder of runs by --runs to compare "
                "methods, such as 'unified@10x'"
            )
        group = self._one_group(text)
        return Selection(_label(group.method, group.asked), self.folder, group.runs)

    def _one_group(self, text: str) -> Group:
        method, at, size = text.rpartition("@") if "@" in text else (text, "", "")
        known = {group.method for group in self.groups}
        name = method if method in known else str(parse(method))
        same = [group for group in self.groups if group.method == name]
        if not same:
            raise RunError(
                f"{self.folder} holds no finished runs of {name!r}{self._filtered()}; "
                f"{nearest(name, known)}"
            )
        fits = [group for group in same if _has_size(group, size)] if at else _own_size(same)
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise RunError(
                f"{name} has no finished runs at {size!r}{self._filtered()}; Allowed: "
                f"{', '.join(sorted({group.asked for group in same}))}"
            )
        raise RunError(f"{text!r} means several kinds of runs: {_differences(fits)}")

    def _filtered(self) -> str:
        return "" if self.filters == Filters() else " with these filters"


def _label(method: str, asked: str) -> str:
    return method if asked == "-" else f"{method} {asked}"


def _one_run(path: Path) -> Selection:
    record = read(path)
    if record["status"] != "ok":
        raise RunError(f"{path} failed: {record['error']['type']}: {record['error']['message']}")
    config = record["config"]
    label = f"{_label(config['method'], asked_size(config))} s{config['seed']}"
    return Selection(label, path.resolve().parent, {config["seed"]: record}, single=True)


def _own_size(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of a method's own size where it has one, else all."""
    return [group for group in groups if group.asked == "-"] or list(groups)


def _has_size(group: Group, size: str) -> bool:
    """Whether a group was asked for a size: ``10x``, ``2MB``, or ``-`` for its own.

    Raises:
        ConfigError: the text is no size.
    """
    text = size.strip()
    config = group.config
    if text in ("-", ""):
        return group.asked == "-"
    if text.endswith("x"):
        try:
            ratio = float(text[:-1])
        except ValueError as error:
            raise ConfigError(f"cannot read the ratio {size!r}; write such as 10x") from error
        return config["ratio"] is not None and math.isclose(config["ratio"], ratio, rel_tol=_NEAR)
    return bool(config["budget"] == parse_bytes(text))


def _differences(groups: Sequence[Group]) -> str:
    """Return what groups differ in, and how to choose."""
    sizes = sorted({group.asked for group in groups})
    if len(sizes) > 1:
        return f"sizes {', '.join(sizes)}; write METHOD@SIZE"
    configs = [{**group.config, "ratio": None, "budget": None, "seed": None} for group in groups]
    names = dict.fromkeys(name for config in configs for name in config)
    differ = {}
    for name in names:
        values = {json.dumps(config.get(name), sort_keys=True) for config in configs}
        if len(values) > 1:
            differ[name] = " or ".join(sorted(values))
    if "model" in differ:
        differ.pop("model_config", None)  # each model has its own
    told = "; ".join(f"{name} {values}" for name, values in differ.items()) or "data of one name"
    return f"{told}; choose by --data, --model or --where NAME=VALUE"
