"""Progressive validation: train on day t, test on day t + 1, and what it costs to keep up.

Three ways to meet ids that were never seen:

- ``rebuilt``: a plain table whose vocabulary is made anew every day from the days that have passed;
  rows of kept ids move with their optimizer state, new ids begin anew;
- ``fixed``: the vocabulary of the first day; whatever comes later is unknown;
- ``raw``: a hash-addressed method over the hashes of raw values: nothing to rebuild.

The network and its optimizers go on from day to day.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featemb import models, optim, staging
from featemb.benchmarks import environment
from featemb.benchmarks.drift_config import DriftConfig
from featemb.benchmarks.drift_vocabulary import Vocabulary, take_over
from featemb.benchmarks.evaluation import predict, quick_scores
from featemb.build import embedding
from featemb.datasets import Split
from featemb.datasets.timeline import Timeline, timeline
from featemb.errors import ConfigError, RunError
from featemb.files import replacing
from featemb.grammar import write as written
from featemb.models import CTRModel
from featemb.schema import Feature, Schema

FORMAT = "featemb-drift-1"
_DEVICE = torch.device("cpu")


class Learner:
    """A network that meets one day after another."""

    def __init__(self, config: DriftConfig, data: Timeline) -> None:
        self.config, self.data = config, data
        self.vocabulary: Vocabulary | None = None
        self.full_bytes = 0
        self.net: CTRModel | None = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.steps = 0

    def meet(self, passed: Sequence[Split]) -> dict[str, int]:
        """Get ready for the last of the days; return how many rows moved, came and went."""
        config, before = self.config, self.vocabulary
        first = self.net is None
        if first or config.way == "rebuilt":
            recent = passed if config.window is None else passed[-config.window :]
            self.vocabulary = Vocabulary.of(recent, config.min_count)
        assert self.vocabulary is not None
        if first:
            schema = self.vocabulary.schema(self.data.features, self.data.numeric)
            self._begin(schema)
            return {"moved": 0, "new": len(self.vocabulary), "gone": 0}
        if config.way != "rebuilt":
            return {"moved": 0, "new": 0, "gone": 0}
        assert before is not None
        return self._move(before, self.vocabulary)

    def _begin(self, schema: Schema) -> None:
        config = self.config
        self.full_bytes = sum(schema.full_bytes(d) for d in self._dims(schema))
        if config.way == "raw":
            limit = int(schema.full_bytes(config.dim) / (config.ratio or 1))
            schema = Schema([Feature(name) for name in self.data.features], self.data.numeric)
            layer = embedding(schema, config.method, dim=config.dim, budget=limit, seed=config.seed)
        else:
            layer = embedding(
                schema, config.method, dim=config.dim, ratio=config.ratio, seed=config.seed
            )
        self.net = self._network(layer)
        stages = staging.stages(self.net)
        if len(stages) > 1:
            raise ConfigError(f"{config.method} trains in {len(stages)} stages: days have one")
        staging.begin(self.net, stages[0], self.net.state_dict())
        self.optimizers = self._optimizers(self.net)

    def _dims(self, schema: Schema) -> list[int]:
        with torch.device("meta"):
            layer = embedding(schema, "full", dim=self.config.dim, device="meta")
        return [one.dim for one in self._network(layer).embeddings()]

    def _network(self, layer: Any) -> CTRModel:
        settings = dict(self.config.model_config)
        return models.build(self.config.model, embedding=layer, seed=self.config.seed, **settings)

    def _optimizers(self, net: CTRModel) -> list[torch.optim.Optimizer]:
        return optim.build(net, self.config.lr, self.config.optimizer)

    def _move(self, before: Vocabulary, now: Vocabulary) -> dict[str, int]:
        assert self.net is not None
        schema = now.schema(self.data.features, self.data.numeric)
        seed = self.config.seed + self.steps  # new ids do not begin like those of other days
        net = self._network(embedding(schema, self.config.method, dim=self.config.dim, seed=seed))
        optimizers, rows = self._optimizers(net), before.moved(now)
        take_over(net, optimizers, self.net, self.optimizers, rows)
        self.net, self.optimizers = net, optimizers
        kept = len(rows[0])
        return {"moved": kept, "new": len(now) - kept, "gone": len(before) - kept}

    def rows(self, day: Split) -> Split:
        """Return a day as the network reads it."""
        if self.config.way == "raw":
            return day
        assert self.vocabulary is not None
        return self.vocabulary(day)

    def train(self, day: Split, number: int) -> None:
        """Train on a day."""
        config, net = self.config, self.net
        assert net is not None
        layers = staging.layers(net)
        net.train()
        for epoch in range(config.epochs):
            batches = day.batches(
                config.batch_size, shuffle=True, seed=config.seed, epoch=number * 1000 + epoch
            )
            for batch in batches:
                loss = staging.update(net, layers, batch, self.optimizers)
                self.steps += 1
                for layer in layers:
                    layer.after_step(self.steps)
            if not bool(torch.isfinite(loss)):
                raise RunError(f"the loss is {float(loss)} on day {number + 1}")

    def score(self, day: Split) -> tuple[float, float]:
        """Return AUC and LogLoss of a day."""
        assert self.net is not None
        self.net.eval()
        score = predict(self.net, day, 16384, _DEVICE)
        return quick_scores(day.label.numpy(), score)


def drift(config: DriftConfig, data: Timeline | None = None) -> dict[str, Any]:
    """Go through the days; return the record.

    Args:
        config: what to run.
        data: the days, where they are loaded already.

    Raises:
        RunError: the loss is not finite.
        ConfigError, BudgetError: the method does not fit the data or the bytes.
    """
    data = timeline(config.data, config.days, **config.data_options) if data is None else data
    learner, found = Learner(config, data), []
    seen: list[np.ndarray[Any, Any]] = [np.empty(0, np.int64) for _ in data.features]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for number, day in enumerate(data.days[:-1]):
            seen = [np.union1d(old, ids) for old, ids in zip(seen, _columns(day), strict=True)]
            found.append(_step(learner, number, seen))
    assert learner.net is not None
    return {
        "format": FORMAT,
        "run_id": config.run_id,
        "config": asdict(config) | {"data_options": dict(config.data_options)},
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "rows": [len(day) for day in data.days],
            "features": len(data.features),
        },
        "method": written(staging.layers(learner.net)[0].spec.method),
        "full_bytes_first_day": learner.full_bytes,
        "steps": found,
        "mean_auc": float(np.mean([one["auc"] for one in found])),
        "mean_logloss": float(np.mean([one["logloss"] for one in found])),
        "versions": environment.versions(),
        "git": environment.git(),
    }


def _columns(day: Split) -> list[np.ndarray[Any, Any]]:
    assert day.ids is not None
    return list(day.ids.numpy().T)


def _step(learner: Learner, number: int, seen: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Train on a day and test on the next one."""
    data = learner.data
    began = time.perf_counter()
    rows = learner.meet(data.days[: number + 1])
    met = time.perf_counter()
    learner.train(learner.rows(data.days[number]), number)
    trained = time.perf_counter()
    test = learner.rows(data.days[number + 1])
    auc, logloss = learner.score(test)
    assert learner.net is not None
    assert test.ids is not None
    raw = _columns(data.days[number + 1])
    new = np.mean([~np.isin(ids, known) for ids, known in zip(raw, seen, strict=True)])
    lost = None if learner.config.way == "raw" else float((test.ids == 0).double().mean())
    memory = learner.net.memory(learner.optimizers)
    return {
        "trained_day": number + 1,
        "tested_day": number + 2,
        "auc": auc,
        "logloss": logloss,
        "best_auc": data.best_auc[number + 1] if data.best_auc else None,
        "new_share": float(new),
        "unknown_share": lost,
        "serving_bytes": memory.serving,
        "training_bytes": memory.training,
        "rows": rows,
        "seconds": {"meet": met - began, "train": trained - met},
    }


def run(config: DriftConfig, folder: str | os.PathLike[str], data: Timeline | None = None) -> Path:
    """Write the record of a run to ``<run id>.json`` in a folder, atomically; a done one stays.

    Raises:
        RunError: as `drift`, or the folder's file is not a record.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{config.run_id}.json"
    if path.exists():
        read(path)
        return path
    text = json.dumps(drift(config, data), indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
    return path


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a record.

    Raises:
        RunError: it is none of this format.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
        if record["format"] != FORMAT:
            raise RunError(f"{path} has format {record['format']!r}, not {FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a record of a drift: {error}") from error
    return record
