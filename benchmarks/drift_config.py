"""`DriftConfig`: everything that decides the answer of one run over the days of a timeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from featemb import models
from featemb.benchmarks import records
from featemb.errors import ConfigError, nearest
from featemb.optim import OPTIMIZERS
from featemb.spec import parse

WAYS = ("rebuilt", "fixed", "raw")


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """One run over the days of a timeline.

    Attributes:
        data: as of `featemb.datasets.timeline.timeline`.
        data_options: its options.
        days: number of days.
        way: "rebuilt", "fixed" or "raw", see `featemb.benchmarks.drift`.
        method: text of the method; "rebuilt" takes "full" alone.
        ratio: bytes of plain tables over the first day's vocabulary / bytes of the method; None:
            as large as they come ("raw": as those tables).
        window: days that a rebuilt vocabulary remembers; None: all.
        min_count: ids seen less often are unknown to a vocabulary.
        model: CTR model.
        model_config: its settings.
        dim: width.
        epochs: passes over each day.
        batch_size: samples of a step.
        lr: learning rate.
        optimizer: as of `featemb.optim.build`.
        seed: of weights and batches.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    data: str
    data_options: Mapping[str, Any] = field(default_factory=dict)
    days: int = 10
    way: str = "raw"
    method: str = "full"
    ratio: float | None = None
    window: int | None = None
    min_count: int = 1
    model: str = "dcnv2"
    model_config: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 16
    epochs: int = 1
    batch_size: int = 256
    lr: float = 1e-3
    optimizer: str = "row_adam"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.way not in WAYS:
            raise ConfigError(f"unknown way {self.way!r}; {nearest(self.way, WAYS)}")
        object.__setattr__(self, "method", str(parse(self.method)))
        if self.way == "rebuilt" and self.method != "full":
            raise ConfigError(f"a vocabulary is rebuilt for the method full, got {self.method!r}")
        for name in ("days", "min_count", "dim", "epochs", "batch_size"):
            if not _is_whole(getattr(self, name)):
                raise ConfigError(f"{name} must be an integer >= 1, got {getattr(self, name)!r}")
        models.find(self.model)
        if self.optimizer not in OPTIMIZERS:
            hint = nearest(str(self.optimizer), OPTIMIZERS)
            raise ConfigError(f"unknown optimizer {self.optimizer!r}; {hint}")
        if self.window is not None and not _is_whole(self.window):
            raise ConfigError(f"window must be an integer >= 1 or none, got {self.window!r}")
        for name in ("lr", "ratio"):
            value = getattr(self, name)
            if not (value is None and name == "ratio") and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a number > 0, got {value!r}")

    @property
    def run_id(self) -> str:
        """Name of the run's file: readable words, and a digest of all settings."""
        words = {"data": self.data, "model": self.model, "method": f"{self.way}-{self.method}"}
        settings = json.loads(json.dumps(asdict(self)))
        return records.run_id(settings | words | {"ratio": self.ratio, "seed": self.seed})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
