"""`Grid`: a sweep as data, from a TOML file or from flags, laid out into runs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featemb import models
from featemb.benchmarks.config import SETTINGS, RunConfig, refuse_unknown
from featemb.benchmarks.protocol import Tuning
from featemb.budget import free_knobs
from featemb.errors import ConfigError, nearest
from featemb.spec import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REFERENCE = "full"
_AXES = ("data", "models", "methods", "ratios", "budgets", "seeds")
_TABLES = ("sweep", "train", "data", "model", "override", "part", "tune")
_PART_TABLES = ("train", "model", "tune")  # what a part may lay over the file's own
_MATCH = ("data", "model", "method")
# What [train] and an override may set: all that no axis and no other table sets.
TRAIN = tuple(
    name
    for name in SETTINGS
    if name not in (*_MATCH, "data_options", "model_config", "ratio", "budget", "seed")
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Data sets x models x methods x sizes x seeds, with one set of training settings.

    Attributes:
        data: names or paths.
        models: names of CTR models.
        methods: texts of methods. ``full`` is the reference: it always runs, without a size.
        ratios: compression ratios. Methods without a free size knob run once, at their own size.
        budgets: serving bytes, ints or texts; further sizes beside the ratios.
        seeds: one run of each combination a seed.
        data_options: arguments of `featemb.datasets.load` by data set.
        model_configs: settings by model.
        train: settings of `RunConfig` for all runs.
        overrides: settings for the runs that match: a table of data, model, method (text, or its
            name alone) to match, and settings of `RunConfig`; later ones win.
        tune: settings that every method tries before the sweep (`featemb.benchmarks.protocol`).

    Raises:
        ConfigError: an axis is empty, or a setting is unknown.
    """

    data: tuple[str, ...]
    models: tuple[str, ...] = ("dcnv2",)
    methods: tuple[str, ...] = (REFERENCE,)
    ratios: tuple[float, ...] = ()
    budgets: tuple[int | str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    data_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Mapping[str, Any], ...] = ()
    tune: Tuning | None = None

    def __post_init__(self) -> None:
        """Refuse what no run would show."""
        for axis in ("data", "models", "methods", "seeds"):
            if not getattr(self, axis):
                raise ConfigError(f"[sweep] {axis} is empty: name at least one")
        refuse_unknown(self.train, TRAIN, "[train]")
        for override in self.overrides:
            self._check_override(override)
        for model in (*self.models, *self.model_configs):
            models.find(model)
        refuse_unknown(self.data_options, self.data, "[data]")
        if self.tune is not None:
            self.tune.check_free(self.train, "[train]")
            for override in self.overrides:
                self.tune.check_free(override, "[[override]]")

    def _check_override(self, override: Mapping[str, Any]) -> None:
        """An override that matches no run is a typing error."""
        _require_table(override, "[[override]]")
        refuse_unknown(override, (*_MATCH, *TRAIN), "[[override]]")
        specs = [parse(text) for text in (REFERENCE, *self.methods)]
        methods = {name for spec in specs for name in (str(spec), spec.method.name)}
        for key, known in (("data", self.data), ("model", self.models), ("method", methods)):
            value = override.get(key)
            if key == "method" and value is not None and value not in methods:
                value = str(parse(value))
            if value is not None and value not in known:
                raise ConfigError(
                    f"[[override]] {key} {value!r} is not in the sweep; {nearest(value, known)}"
                )

    def runs(self) -> list[RunConfig]:
        """Lay the sweep out, a data set after another, its references first; equal runs once.

        Raises:
            ConfigError: a setting of a run is unknown or out of range.
        """
        found: dict[RunConfig, None] = {}
        methods = dict.fromkeys((REFERENCE, *(str(parse(text)) for text in self.methods)))
        for data, method in itertools.product(self.data, methods):
            for model, size in itertools.product(self.models, self._sizes(method)):
                for seed in self.seeds:
                    found[self._run(data, model, method, seed, size)] = None
        return list(found)

    def _sizes(self, method: str) -> list[dict[str, Any]]:
        spec = parse(method)
        sizes: list[dict[str, Any]] = [{"ratio": ratio} for ratio in self.ratios]
        sizes += [{"budget": budget} for budget in self.budgets]
        return sizes if sizes and free_knobs(spec) else [{}]

    def _run(
        self, data: str, model: str, method: str, seed: int, size: Mapping[str, Any]
    ) -> RunConfig:
        settings = dict(self.train)
        name = parse(method).method.name
        for override in self.overrides:
            wanted = str(override.get("method", method))
            same_method = wanted == name or str(parse(wanted)) == method
            if (
                same_method
                and override.get("data", data) == data
                and override.get("model", model) == model
            ):
                settings |= {key: value for key, value in override.items() if key not in _MATCH}
        return RunConfig(
            data=data,
            data_options=self.data_options.get(data, {}),
            model=model,
            model_config=self.model_configs.get(model, {}),
            method=method,
            seed=seed,
            **size,
            **settings,
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> Grid:
        """Read the file of a sweep of one part; docs/benchmarks.md lists its keys.

        Raises:
            ConfigError: as `grids`, or the file has several parts.
        """
        found = grids(path)
        if len(found) > 1:
            raise ConfigError(f"{path}: one part is wanted, the file has {len(found)}")
        return found[0]


def grids(path: str | Path) -> tuple[Grid, ...]:
    """Read the parts of a sweep's file; docs/benchmarks.md lists its keys.

    A part gives axes of its own; those that it leaves out are of ``[sweep]``. Its tables ``train``
    and ``model.NAME`` are laid over the file's, key by key; its table ``tune`` replaces the file's.

    Raises:
        ConfigError: the file is missing, not TOML, or holds an unknown key or wrong type.
    """
    try:
        document = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the sweep {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    try:
        return _grids(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _grids(document: dict[str, Any]) -> tuple[Grid, ...]:
    refuse_unknown(document, _TABLES, "sweep file")
    _require_named(document, ("data", "model"), "")
    base = _axes(document.get("sweep", {}), "[sweep]")
    parts = _tables(document, "part") or [{}]
    axes = [base | _axes(part, "[[part]]", _PART_TABLES) for part in parts]
    if any("data" not in one for one in axes):
        raise ConfigError("[sweep] needs data: a list of data sets")
    overrides = _tables(document, "override")
    refused = [_refused(override, axes) for override in overrides]
    for reasons in refused:
        if None not in reasons:
            raise ConfigError(str(reasons[0]))
    return tuple(
        Grid(
            **axes[number],
            **_settings(document, part),
            data_options=_of(axes[number]["data"], document.get("data", {}), axes),
            overrides=tuple(
                override
                for override, reasons in zip(overrides, refused, strict=True)
                if reasons[number] is None
            ),
        )
        for number, part in enumerate(parts)
    )


def _settings(document: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is tried and set in a part: the file's tables under its own."""
    _require_named(part, ("model",), "part.")
    train, own = document.get("train", {}), part.get("train", {})
    _require_table(train, "[train]")
    _require_table(own, "[part.train]")
    models = dict(document.get("model", {}))
    for name, entry in part.get("model", {}).items():
        models[name] = {**models.get(name, {}), **entry}
    tune = part.get("tune", document.get("tune"))
    return {
        "train": {**train, **own},
        "model_configs": models,
        "tune": None if tune is None else Tuning.from_table(tune),
    }


def _require_named(document: Mapping[str, Any], tables: tuple[str, ...], prefix: str) -> None:
    """Refuse what is not a table of named tables."""
    for table in tables:
        _require_table(document.get(table, {}), f"[{prefix}{table}]")
        for name, entry in document.get(table, {}).items():
            _require_table(entry, f"[{prefix}{table}.{name}]")


def _axes(table: Any, where: str, tables: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the axes of a table that may hold other tables too."""
    _require_table(table, where)
    refuse_unknown(table, (*_AXES, *tables), where)
    axes = {axis: values for axis, values in table.items() if axis not in tables}
    for axis, values in axes.items():
        if not isinstance(values, list):
            raise ConfigError(f"{where} {axis} must be a list, got {values!r}")
    return {axis: tuple(values) for axis, values in axes.items()}


def _tables(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key, [])
    if not isinstance(found, list):
        raise ConfigError(f"{key} is a list of tables: write [[{key}]]")
    return found


def _refused(override: Mapping[str, Any], parts: list[dict[str, Any]]) -> list[ConfigError | None]:
    """Return why each part does not take an override, or None where it does."""
    reasons: list[ConfigError | None] = []
    for axes in parts:
        try:
            Grid(**axes, overrides=(override,))
        except ConfigError as error:
            reasons.append(error)
        else:
            reasons.append(None)
    return reasons


def _of(
    data: tuple[str, ...],
    options: Mapping[str, Mapping[str, Any]],
    parts: list[dict[str, Any]],
) -> dict[str, Mapping[str, Any]]:
    """Return the options of a part's data sets; those of no part's are left, to be refused."""
    others = {name for axes in parts for name in axes["data"]} - set(data)
    return {name: entry for name, entry in options.items() if name not in others}


def _require_table(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table, got {value!r}")
