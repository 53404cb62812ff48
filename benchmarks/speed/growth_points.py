"""What one point of `featemb.benchmarks.speed.growth` measures, in a process of its own."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import featemb as fe
from featemb import datasets, optim
from featemb.benchmarks.speed import turns as speed
from featemb.layer import FeatureEmbedding
from featemb.optim.lazy import RowOptimizer

Ids = Tensor | fe.Jagged


@dataclass(frozen=True)
class StepPoint:
    """A step of a bare layer.

    Attributes:
        rows: of all features together; for ``unified`` of its table.
        features: F.
        dim: D.
        lookups: of an id in ``unified``; 0 is the full table.
        bag: ids of each bag; 0 is a single id a feature.
        batch: samples of a step.
        optimizer: as in `featemb.optim.build`.
        turns: steps that count.
    """

    rows: int = 1_000_000
    features: int = 26
    dim: int = 16
    lookups: int = 0
    bag: int = 0
    batch: int = 4096
    optimizer: str = "row_adam"
    turns: int = 12


@dataclass(frozen=True)
class EncodePoint:
    """Encoding a Parquet file.

    Attributes:
        rows: of the file.
        features: columns of ids.
        distinct: values of a column.
    """

    rows: int = 200_000
    features: int = 10
    distinct: int = 10_000


def read(kind: type, values: dict[str, Any]) -> Any:
    """Return a point from its settings alone, whatever else is beside them."""
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})


def _layer(point: StepPoint) -> FeatureEmbedding:
    size = point.rows // point.features
    multi = bool(point.bag)
    schema = fe.Schema(fe.Feature(f"f{n}", size, multi=multi) for n in range(point.features))
    spec = "full"
    if point.lookups:
        spec = f"unified(lookups={point.lookups}, rows={point.rows})"
    return fe.embedding(schema, spec, dim=point.dim)


def _draw(point: StepPoint, generator: torch.Generator) -> Ids:
    size = point.rows // point.features
    if not point.bag:
        return torch.randint(size, (point.batch, point.features), generator=generator)
    count = point.batch * point.features
    values = torch.randint(size, (count * point.bag,), generator=generator)
    return fe.Jagged(values, torch.full((count,), point.bag))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(point: StepPoint) -> dict[str, Any]:
    """Measure a training step of a layer: time, and resident bytes beside those by count."""
    _warm(point)
    before = _resident()
    layer = _layer(point)
    optimizers = optim.build(layer, lr=1e-3, optimizer=point.optimizer)
    for optimizer in optimizers:
        if isinstance(optimizer, RowOptimizer):
            optimizer.allocate()
    generator, taken = torch.Generator().manual_seed(0), 0

    def train() -> speed.Taken:
        nonlocal taken
        taken += 1
        ids = _draw(point, generator)
        return speed.timed(lambda: once(ids))

    def once(ids: Ids) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        layer(ids).sum().backward()
        layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        layer.after_step(taken)

    found = speed.take({"step": train}, point.turns, warmup=3, limit=20)
    counted = layer.memory(optimizers)
    return {
        "milliseconds": {kind: ms["step"] for kind, ms in found.items()},
        "bytes": {"training": counted.training, "serving": counted.serving},
        "parts": dict(counted.training_parts),
        "resident_bytes": _resident() - before,
        "peak_bytes": _peak() - before,
    }


def _warm(point: StepPoint) -> None:
    """Take a step of a small layer, so that what torch loads at first is there before."""
    small = fe.embedding(fe.Schema([fe.Feature("id", 1000)]), "full", dim=4)
    small(torch.zeros(8, 1, dtype=torch.int64)).sum().backward()
    for optimizer in optim.build(small, lr=1e-3, optimizer=point.optimizer):
        optimizer.step()


def encode(point: EncodePoint) -> dict[str, Any]:
    """Measure both passes of `featemb.datasets.encode`."""
    random = np.random.default_rng(0)
    columns = {
        f"f{number}": random.integers(0, point.distinct, point.rows)
        for number in range(point.features)
    }
    columns["label"] = (random.random(point.rows) < 0.25).astype(np.int64)
    recipe = datasets.Recipe(
        label="label",
        columns=[datasets.Column(name=f"f{number}") for number in range(point.features)],
        min_count=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        pq.write_table(pa.table(columns), file, row_group_size=1 << 16)
        del columns
        taken = speed.timed(lambda: datasets.encode(file, Path(folder) / "out", recipe=recipe))
    return {"milliseconds": {"median": round(1e3 * taken.clock, 1)}}


POINTS: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "step": (StepPoint, step),
    "encode": (EncodePoint, encode),
}
