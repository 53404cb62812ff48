"""How to search, and what a search takes from Optuna, which is imported when one is done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featemb.benchmarks.run import run_id
from featemb.benchmarks.space import Knob, Space
from featemb.errors import ConfigError

SAMPLERS = ("tpe", "random", "grid")
JOURNAL = "study.journal"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to search.

    Attributes:
        trials: number of different settings to try, those of earlier searches of the same included.
        sampler: "tpe" (Bergstra et al., NeurIPS 2011), "random" or "grid".
        seed: of the sampler.
        jobs: processes; so many trials are chosen at once, and each round waits for its last.
        timeout: seconds after which no trial begins; None: no limit.
        prune: stop a run whose validation AUC is below the median of the others' at the same
            evaluation; five trials run to their end before.
        checkpoint: as `featemb.benchmarks.run.run_one`.

    Raises:
        ConfigError: a setting is out of range.
    """

    trials: int = 20
    sampler: str = "tpe"
    seed: int = 0
    jobs: int = 1
    timeout: float | None = None
    prune: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.sampler not in SAMPLERS:
            allowed = ", ".join(SAMPLERS)
            raise ConfigError(f"unknown sampler {self.sampler!r}; Allowed: {allowed}")
        for name in ("trials", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prune and self.jobs > 1:
            raise ConfigError(f"prune compares trials one after another: jobs={self.jobs} cannot")


def load_optuna() -> Any:
    """Import Optuna, with its log off.

    Raises:
        ConfigError: it is not installed; names the extra.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "a search of settings needs Optuna: pip install 'featemb[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(folder: Path) -> Any:
    """Return where the studies of a folder lie."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def study_name(space: Space, plan: Plan) -> str:
    """Name what is searched and how; more trials are the same study."""
    knobs = [(knob.name, repr(knob.values)) for knob in space.knobs]
    text = json.dumps([run_id(space.base), knobs, plan.sampler, plan.seed, plan.prune])
    return f"search-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def distribution(knob: Knob) -> Any:
    """Return a knob's values as Optuna takes them."""
    from optuna import distributions

    values = knob.values
    if values.choices:
        return distributions.CategoricalDistribution(values.choices)
    if knob.whole:
        return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return distributions.FloatDistribution(values.low, values.high, log=values.log)
