"""Jobs of two processes for tests: each test file starts its own workers once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
Job = Callable[[int, Path], Any]


def run_jobs(jobs: Sequence[Job], folder: Path, world: int = WORLD) -> list[dict[str, Any]]:
    """Run jobs one after another in some processes over gloo; return their answers, by rank.

    Args:
        jobs: functions of a module, called with the rank and the folder.
        folder: for files.
        world: number of processes.
    """
    store = folder / "store"
    mp.spawn(_worker, (world, str(store), list(jobs), str(folder)), world)
    return [torch.load(folder / f"answers{rank}.pt") for rank in range(world)]


def _worker(rank: int, world: int, store: str, jobs: list[Job], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    answers: dict[str, Any] = {}
    for job in jobs:
        try:
            answers[job.__name__] = job(rank, Path(folder))
        except Exception:
            # the others wait in a collective: end all, with what went wrong
            raise RuntimeError(f"{job.__name__}: {traceback.format_exc()}") from None
    torch.save(answers, Path(folder) / f"answers{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
