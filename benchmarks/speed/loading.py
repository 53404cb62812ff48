"""How fast rows of shards become batches of tensors, against a plain copy of the same bytes.

Rows are as Criteo's: 26 ids (int32 on disk, int64 in a batch), 13 numbers and a label. Variants
take turns, epoch by epoch, so that a noisy machine disturbs all of them alike:

- ``as they lie``, ``shuffled``: `featemb.datasets.ShardedSplit.batches`, at several batch sizes;
- ``in memory, shuffled``: `featemb.datasets.Split.batches` of the same rows;
- ``copy``: ``memcpy`` of as many bytes as the batches of an epoch hold, in stretches of a chunk;
- ``training``: share of the time of training steps that they wait for their batch.

Rates are given by the clock, best and median, and by the processor seconds of all threads, which do
not depend on what else the machine does: what one processor gives that does nothing else.

Run ``python -m featemb.benchmarks.speed.loading --out FILE``; it prints and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import featemb as fe
from featemb import models, optim, staging
from featemb.benchmarks.speed import turns as speed
from featemb.datasets import ShardedSplit, Split
from featemb.datasets.shard_index import Shard
from featemb.datasets.sharded import CHUNK_ROWS

IDS, NUMBERS = 26, 13
CARDINALITY = 40_000
ROW_BYTES = 8 * IDS + 4 * NUMBERS + 4  # in a batch


def write(folder: Path, shards: int, rows: int) -> list[Shard]:
    """Write random shards, as the encoder lays them out."""
    random, made = np.random.default_rng(0), []
    for number in range(shards):
        arrays = {
            "ids": random.integers(0, CARDINALITY, (rows, IDS), np.int32),
            "numeric": random.random((rows, NUMBERS), np.float32),
            "label": (random.random(rows) < 0.25).astype(np.float32),
        }
        name, files = f"train-{number:05}", {}
        for kind, array in arrays.items():
            path = folder / f"{name}.{kind}.npy"
            np.save(path, array)
            files[kind] = {"path": path.name, "bytes": path.stat().st_size, "sha256": ""}
        made.append(Shard(name, rows, int(arrays["label"].sum()), folder, files))
    return made


Seconds = tuple[float, float]  # by the clock, of the processor


def copy(rows: int) -> Callable[[int], Seconds]:
    """Return a function that copies an epoch's bytes in stretches, and its seconds."""
    source = np.ones((rows, ROW_BYTES), np.uint8)

    def once(_epoch: int) -> Seconds:
        began, busy = time.perf_counter(), time.process_time()
        for start in range(0, rows, CHUNK_ROWS):
            source[start : start + CHUNK_ROWS].copy()
        return time.perf_counter() - began, time.process_time() - busy

    return once


def epoch_of(split: Split, batch: int, shuffle: bool) -> Callable[[int], Seconds]:
    """Return a function that goes through an epoch's batches, and its seconds."""

    def once(epoch: int) -> Seconds:
        began, busy = time.perf_counter(), time.process_time()
        rows = sum(len(b.label) for b in split.batches(batch, shuffle=shuffle, epoch=epoch))
        assert rows == len(split)
        return time.perf_counter() - began, time.process_time() - busy

    return once


def waiting(batches: Iterable[Any], steps: int) -> dict[str, float]:
    """Train a small network; return samples a second, and the share of time spent on waiting."""
    schema = fe.Schema(
        [fe.Feature(f"C{n}", CARDINALITY) for n in range(IDS)], [f"I{n}" for n in range(NUMBERS)]
    )
    net = models.build("dcnv2", embedding=fe.embedding(schema, "full", dim=16), numeric=NUMBERS)
    layers, optimizers = staging.layers(net), optim.build(net, 1e-3)
    net.train()
    waited, rows, found = 0.0, 0, iter(batches)
    began = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(found)
        waited += time.perf_counter() - asked
        staging.update(net, layers, batch, optimizers)
        rows += len(batch.label)
    seconds = time.perf_counter() - began
    return {"samples_a_second": round(rows / seconds), "share_of_waiting": waited / seconds}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return seconds of an epoch of every variant, measured in turns, and what training waits."""
    shards = write(folder, options.shards, options.rows // options.shards)
    split = ShardedSplit(shards, options.window, check=False)
    whole = Split(split.label, split.ids, (), split.numeric)
    ways: dict[str, Callable[[int], Seconds]] = {"copy": copy(len(split))}
    for batch in options.batch:
        ways[f"as they lie, batches of {batch}"] = epoch_of(split, batch, shuffle=False)
        ways[f"shuffled, batches of {batch}"] = epoch_of(split, batch, shuffle=True)
        ways[f"in memory, shuffled, batches of {batch}"] = epoch_of(whole, batch, shuffle=True)
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch is too small to share out; the loader has its own thread
    for turn in range(options.turns + 1):
        for name, way in ways.items():
            taken = way(turn)
            if turn:  # the first one warms up
                seconds[name].append(taken)
    torch.set_num_threads(threads)
    train = waiting(split.batches(4096, shuffle=True), options.steps)
    return summary(seconds, len(split)) | {"training": train}


def summary(seconds: dict[str, list[Seconds]], rows: int) -> dict[str, Any]:
    """Return millions of rows a second and ratios to the copy."""
    clock = {name: [one for one, _ in values] for name, values in seconds.items()}
    busy = {name: min(one for _, one in values) for name, values in seconds.items()}
    best = {name: min(values) for name, values in clock.items()}
    median = {name: statistics.median(values) for name, values in clock.items()}
    found: dict[str, Any] = {}
    for word, taken in (("best", best), ("median", median), ("processor", busy)):
        found[f"million_rows_a_second_{word}"] = {
            name: round(rows / value / 1e6, 2) for name, value in taken.items()
        }
        found[f"seconds_to_those_of_the_copy_{word}"] = {
            name: round(value / taken["copy"], 2) for name, value in taken.items()
        }
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--window", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="training steps for the waiting")
    parser.add_argument("--folder", type=Path, help="where the shards are written for the time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(options, Path(folder))
    record = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "folder")},
        "bytes_a_row": {"on disk": 4 * (IDS + NUMBERS + 1), "in a batch": ROW_BYTES},
        "machine": {
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
            "load_average": round(os.getloadavg()[0], 1),
        },
        **found,
    }
    speed.save(record, None)
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
