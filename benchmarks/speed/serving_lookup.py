"""What a lookup of frozen rows costs in every format, against ``nn.Embedding``, in one process.

A layer of one feature, random ids that are drawn anew for every lookup. Variants take turns, so
that a noisy machine disturbs all of them alike, in an order that is drawn anew too: a lookup right
after another one of the same table finds its page table in the caches.

- ``nn.Embedding``: torch's own table in fp32;
- ``layer CODEC``: the whole frozen layer, with its check of the ids and its address;
- ``rows CODEC``: the part that holds the rows alone;
- ``plain CODEC``: the same rows by plain tensor code, without torch's quantised kernels;
- ``FBGEMM int8`` and so on: its inference kernel on rows of its layout, where it is installed.

Run ``python -m featemb.benchmarks.speed.serving_lookup --out FILE``; it prints and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import featemb as fe
from featemb.benchmarks.speed import fbgemm_rows
from featemb.benchmarks.speed import turns as speed
from featemb.codecs.base import codec_by_name
from featemb.codecs.integers import IntRows
from featemb.kernels import code_bytes, read_fused_plainly
from featemb.parts import Lookup

Lookups = dict[str, Callable[[Tensor], Any]]
_REFERENCE = "nn.Embedding"


def with_codec(codec: str, weight: Tensor) -> fe.FrozenEmbedding:
    """Return a frozen layer of one feature with these rows."""
    rows, dim = weight.shape
    layer = fe.embedding(fe.Schema([fe.Feature("id", rows)]), "full", dim=dim, device="meta")
    frozen = layer.freeze()
    assert isinstance(frozen.source, Lookup)
    frozen.source.rows = codec_by_name(codec).encode(weight)
    return frozen


def as_batch(frozen: fe.FrozenEmbedding) -> Callable[[Tensor], Any]:
    """Return a layer's call for ids ``[N]`` of its one feature."""
    return lambda ids: frozen(ids[:, None])


def other_ways(codec: str, part: nn.Module) -> Lookups:
    """Return further ways to read rows whose scales lie behind their codes."""
    if not isinstance(part, IntRows):
        return {}
    stored, bits, width = part.rows, part.bits, part.width
    found: Lookups = {f"plain {codec}": lambda rows: read_fused_plainly(stored, rows, bits, width)}
    if find_spec("fbgemm_gpu") is not None:
        codes = stored[:, : code_bytes(width, bits)]
        pairs = torch.ones(len(stored), 2, dtype=torch.float16).view(torch.uint8)
        table = torch.cat((pairs, codes), 1)
        found[f"FBGEMM {codec}"] = lambda rows: fbgemm_rows.lookup(table, rows, bits, width)
    return found


def lookups(options: argparse.Namespace) -> tuple[Lookups, dict[str, float]]:
    """Return every variant, and the bytes of a row in every format."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(options.rows, options.dim).uniform_(-0.05, 0.05, generator=generator)
    plain = nn.Embedding(options.rows, options.dim, _weight=weight)
    found: Lookups = {_REFERENCE: plain}
    sizes = {}
    for codec in options.codecs:
        frozen = with_codec(codec, weight)
        assert isinstance(frozen.source, Lookup)
        part = frozen.source.rows
        found[f"layer {codec}"] = as_batch(frozen)
        found[f"rows {codec}"] = part
        found |= other_ways(codec, part)
        sizes[codec] = round(frozen.memory().serving / options.rows, 4)
    return found, sizes


@torch.no_grad()
def measure(variants: Lookups, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds and ratios with a number of threads."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(options.warmup + options.turns):
        for place in torch.randperm(len(names), generator=generator).tolist():
            name, lookup = names[place], variants[names[place]]
            rows = torch.randint(options.rows, (options.ids,), generator=generator)
            began = time.perf_counter()
            lookup(rows)
            if turn >= options.warmup:
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = {name: min(values) for name, values in seconds.items()}
    others = [name for name in variants if name != _REFERENCE]
    return {
        "milliseconds_median": {name: round(1e3 * value, 2) for name, value in median.items()},
        "milliseconds_best": {name: round(1e3 * value, 2) for name, value in best.items()},
        "ratios_of_medians": {k: round(median[_REFERENCE] / median[k], 2) for k in others},
        "ratios_of_best": {k: round(best[_REFERENCE] / best[k], 2) for k in others},
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--ids", type=int, default=106_496)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    codecs = ["fp32", "fp16", "bf16", "fp8", "int8", "int8(scales=block)", "int4"]
    codecs += ["int4(scales=block)", "int2(scales=row)", "int2"]
    parser.add_argument("--codecs", nargs="+", default=codecs)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    variants, sizes = lookups(options)
    record = {
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
        },
        "bytes_a_row": sizes,
        "threads": {str(one): measure(variants, one, options) for one in options.threads},
    }
    speed.save(record, None)
    if options.out is not None:
        speed.save(record, options.out)


if __name__ == "__main__":
    main()
