"""Training samples a second of a DeepFM: featemb against FuxiCTR and DeepCTR-Torch.

The models are those of `featemb.benchmarks.speed.peer_models`. Each peer and featemb take turns,
step by step, in a process of their own for every size, on the same batches; a batch is ready in
memory, so that no library's loading counts. The peers' Adam moves every row at every step. Ours
(`RowAdam`) moves the rows of the batch: a row that is not read keeps its value and its moments,
which is not what dense Adam does to it. ``featemb, dense_adam`` is our step with theirs.

A profile of our step goes beside: shares of data (a shuffled batch gathered from memory), address
(checks of the ids, their rows, the layout of the answer), rows (gather and their gradients),
combine, net (all other work forward and backward), optimizer.

Run ``python -m featemb.benchmarks.speed.peers --out FILE``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featemb.benchmarks.speed import turns as speed
from featemb.benchmarks.speed.peer_models import CONTENDERS, Sizes, TrainStep, batches
from featemb.benchmarks.speed.step_profile import shares

_OURS = "featemb"
_LARGE = 4_000_000  # rows from which a peer's step takes long: fewer turns do


def one(sizes: Sizes, peer: str, turns: int, warmup: int) -> dict[str, Any]:
    """Measure featemb and a peer in turns, in this process."""
    draw = batches(sizes)
    drawn = draw()

    def step_of(train: TrainStep, fresh: bool) -> Callable[[], speed.Taken]:
        def step() -> speed.Taken:
            nonlocal drawn
            if fresh:
                drawn = draw()
            ids, label = drawn
            return speed.timed(lambda: train(ids, label))

        return step

    steps = {_OURS: step_of(CONTENDERS[_OURS](sizes), fresh=True)}
    steps[peer] = step_of(CONTENDERS[peer](sizes), fresh=False)
    found = speed.take(steps, turns, warmup)
    rate = {name: round(1e3 * sizes.batch / ms) for name, ms in found["median"].items()}
    return {
        "rows": sizes.rows,
        "peer": peer,
        "milliseconds": found,
        "samples_per_second": {"featemb": rate[_OURS], "peer": rate[peer]},
        "ratios": {kind: round(ms[peer] / ms[_OURS], 2) for kind, ms in found.items()},
    }


def piece(wanted: dict[str, Any]) -> dict[str, Any]:
    """Do a piece of work in this process: a pair of contenders, or a profile."""
    sizes = Sizes(**{**wanted["sizes"], "hidden": tuple(wanted["sizes"]["hidden"])})
    if "peer" not in wanted:
        return {"rows": sizes.rows, **shares(sizes, wanted["turns"], wanted["warmup"])}
    return one(sizes, wanted["peer"], wanted["turns"], wanted["warmup"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every peer and every size."""
    apart = partial(speed.apart, __spec__.name, "--piece")
    pairs, profiles = [], []
    for rows in options.rows:
        sizes = {
            **{"rows": rows, "features": options.features, "dim": options.dim},
            **{"hidden": options.hidden, "batch": options.batch},
        }
        large = rows >= _LARGE
        turns = {"turns": options.large_turns if large else options.turns}
        turns["warmup"] = 2 if large else options.warmup
        for peer in options.peers:
            pairs.append(apart({"sizes": sizes, "peer": peer, **turns}))
            print(f"{rows:,} rows, {peer}: {pairs[-1]['ratios']}", flush=True)
        profile = {"turns": options.turns, "warmup": options.warmup}
        profiles.append(apart({"sizes": sizes, **profile}))
        print(f"{rows:,} rows: {profiles[-1]['shares']}", flush=True)
    return {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "piece")},
        "machine": speed.machine(),
        "versions": {name: version(name) for name in ("fuxictr", "deepctr-torch")},
        "pairs": pairs,
        "profiles": profiles,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = [100_000, 1_000_000, 5_000_000, 20_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    peers = [name for name in CONTENDERS if name != _OURS]
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers)
    parser.add_argument("--features", type=int, default=26)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[400, 400, 400])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--large-turns", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--piece", help="what one process does, as JSON")
    options = parser.parse_args()
    if options.piece is not None:
        print(json.dumps(piece(json.loads(options.piece))))
        return
    speed.save(measure(options), options.out)


if __name__ == "__main__":
    main()
