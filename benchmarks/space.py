"""`Space`: the settings that a search may change in a run, and the values that it tries."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featemb import models
from featemb.benchmarks.config import RunConfig
from featemb.budget import free_knobs
from featemb.config import Range
from featemb.errors import ConfigError, nearest

# Settings of training that can be searched, and the model's dropout.
TRAIN_KNOBS = {
    "lr": Range(1e-4, 2e-2, log=True),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "batch_size": Range(choices=(256, 512, 1024, 2048, 4096)),
    "anneal": Range(choices=(0.0, 0.25, 0.5, 1.0)),
    "dropout": Range(0.0, 0.5),
}
_POINTS = 3  # of a range in a grid
_MOST = 10_000  # points of a grid that are tried
_DIGITS = 4  # significant ones of a number tried: what is printed is what was run


@dataclass(frozen=True)
class Knob:
    """One setting to search.

    Attributes:
        name: such as "qr.partitions" or "lr".
        values: what is tried.
        default: the value that the run has without the search.
        method: number of the method that has the setting; None for a setting of training.
        setting: its name there.
    """

    name: str
    values: Range
    default: Any
    method: int | None
    setting: str

    @property
    def whole(self) -> bool:
        """Whether values of the range are integers."""
        return isinstance(self.default, int)

    def rounded(self, value: Any) -> Any:
        """Return a value of the range as it is run."""
        if self.values.choices:
            return value
        return round(value) if self.whole else float(f"{value:.{_DIGITS}g}")

    @property
    def start(self) -> Any:
        """The default, or the end of the range that is nearest to it."""
        if self.values.choices:
            return self.default if self.values.holds(self.default) else self.values.choices[0]
        return self.rounded(min(max(self.default, self.values.low), self.values.high))

    @property
    def points(self) -> tuple[Any, ...]:
        """The values of a grid."""
        if self.values.choices:
            return self.values.choices
        low, high = self.values.low, self.values.high
        if self.values.log:
            low, high = math.log(low), math.log(high)
        steps = [low + (high - low) * i / (_POINTS - 1) for i in range(_POINTS)]
        values = [math.exp(one) if self.values.log else one for one in steps]
        return tuple(dict.fromkeys(self.rounded(value) for value in values))


@dataclass(frozen=True)
class Space:
    """The knobs of one run, whose size stays what it is.

    Attributes:
        base: the run.
        knobs: what a search changes in it.
    """

    base: RunConfig
    knobs: tuple[Knob, ...]

    @classmethod
    def of(
        cls, base: RunConfig, knobs: Sequence[str] = (), train_knobs: Sequence[str] = ()
    ) -> Space:
        """Collect the knobs of a run.

        Args:
            base: the run; settings of its method that are not the defaults stay as they are.
            knobs: settings of the method, as "partitions" or "qr.partitions"; empty takes all that
                declare values to try (`featemb.config.tunable`).
            train_knobs: settings of training, of `TRAIN_KNOBS`.

        Raises:
            ConfigError: a knob is unknown, there is none, or the run leaves its size open.
        """
        if free_knobs(base.spec) and base.ratio is None and base.budget is None:
            raise ConfigError(
                f"a search of {base.method} keeps the size fixed: give a ratio or a budget"
            )
        found = (*_method_knobs(base, knobs), *_train_knobs(base, train_knobs))
        if not found:
            raise ConfigError(
                f"{base.method} has no setting left to search; name a setting of training: "
                f"{', '.join(TRAIN_KNOBS)}"
            )
        return cls(base, found)

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the run with other values.

        Raises:
            ConfigError: the values do not go together.
        """
        changes: list[dict[str, Any]] = [{} for _ in self.base.spec.methods]
        train: dict[str, Any] = {}
        settings = dict(self.base.model_config)
        for knob in self.knobs:
            value = knob.rounded(values[knob.name])
            if knob.method is not None:
                changes[knob.method][knob.setting] = value
            elif knob.setting == "dropout":
                settings["dropout"] = value
            else:
                train[knob.setting] = value
        pairs = zip(self.base.spec.methods, changes, strict=True)
        methods = [replace(method, **changed) for method, changed in pairs]
        spec = self.base.spec.with_methods(methods)
        return replace(self.base, method=str(spec), model_config=settings, **train)

    def start(self) -> dict[str, Any]:
        """Return the values that the run has without a search, as far as they are tried."""
        return {knob.name: knob.start for knob in self.knobs}

    def grid(self, seed: int) -> Iterator[dict[str, Any]]:
        """Return all combinations of the knobs' points in random order, `start` first."""
        names = [knob.name for knob in self.knobs]
        points = [knob.points for knob in self.knobs]
        first = self.start()
        yield first
        total = math.prod(len(one) for one in points)
        order = random.Random(seed).sample(range(total), min(total, _MOST))
        for number in order:
            values: dict[str, Any] = {}
            for name, one in zip(names, points, strict=True):
                number, place = divmod(number, len(one))
                values[name] = one[place]
            if values != first:
                yield values


def _method_knobs(base: RunConfig, wanted: Sequence[str]) -> list[Knob]:
    """Return the wanted settings of the methods, or all that the run leaves at their defaults."""
    every: dict[str, Knob] = {}
    seen: dict[str, int] = {}
    for number, method in enumerate(base.spec.methods):
        seen[method.name] = seen.get(method.name, 0) + 1
        prefix = method.name + (f"@{seen[method.name]}" if seen[method.name] > 1 else "")
        for setting, values in method.tunables().items():
            name = f"{prefix}.{setting}"
            every[name] = Knob(name, values, getattr(method, setting), number, setting)
    if not wanted:
        fresh = [type(method)() for method in base.spec.methods]
        return [
            knob
            for knob in every.values()
            if knob.default == getattr(fresh[knob.method or 0], knob.setting)
        ]
    return list(itertools.chain.from_iterable(_named(every, name, base.method) for name in wanted))


def _named(every: Mapping[str, Knob], wanted: str, method: str) -> list[Knob]:
    found = [knob for knob in every.values() if wanted in (knob.name, knob.setting)]
    if not found:
        raise ConfigError(f"{method}: no setting {wanted!r} to search; {nearest(wanted, every)}")
    return found


def _train_knobs(base: RunConfig, wanted: Sequence[str]) -> list[Knob]:
    found = []
    for name in dict.fromkeys(wanted):
        if name not in TRAIN_KNOBS:
            raise ConfigError(
                f"no setting of training {name!r} to search; {nearest(name, TRAIN_KNOBS)}"
            )
        if name != "dropout":
            default = getattr(base, name)
        elif name in models.find(base.model).config_class.field_names():
            default = base.model_config[name]
        else:
            raise ConfigError(f"the model {base.model} has no dropout to search")
        found.append(Knob(name, TRAIN_KNOBS[name], default, None, name))
    return found
