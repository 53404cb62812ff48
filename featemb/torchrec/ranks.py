"""Batches and scores of a job of several processes: every row in one process, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from featemb.ids import Jagged


class RankBatch(NamedTuple):
    """One process's part of a batch.

    Attributes:
        ids: int64 ``[B, F]``, or `Jagged`.
        numeric: float ``[B, M]``, or None.
        label: float ``[B]``.
        weight: float ``[B]``, of each sample's loss: the mean over processes of the weighted means
            is the mean over the whole batch.
        first: place of the first row in the whole batch.
        rows: how many rows are this process's own. Where a batch has fewer rows than there are
            processes, a process without one takes part with the first row, of weight 0.
    """

    ids: Any
    numeric: Tensor | None
    label: Tensor
    weight: Tensor
    first: int
    rows: int


def part_of(batch: Any, rank: int, world: int) -> RankBatch:
    """Return one of ``world`` parts of a batch; they differ by one row at most."""
    total = len(batch.label)
    first, end = total * rank // world, total * (rank + 1) // world
    rows = end - first
    taken = slice(first, end) if rows else slice(0, 1)
    label = batch.label[taken]
    weight = torch.full_like(label, rows * world / total)
    numeric = None if batch.numeric is None else batch.numeric[taken]
    return RankBatch(_ids(batch.ids, taken, total), numeric, label, weight, first, rows)


def parts_of(batches: Iterable[Any], rank: int | None = None) -> Iterator[RankBatch]:
    """Yield a process's parts of some batches, the same ones in every process.

    Args:
        batches: whole ones.
        rank: the process; None takes this one, of the default process group.
    """
    number = dist.get_rank() if rank is None else rank
    for batch in batches:
        yield part_of(batch, number, dist.get_world_size())


def all_rows(parts: Iterable[tuple[RankBatch, Tensor]], batch_size: int, total: int) -> Tensor:
    """Bring the processes' numbers of all rows together, in the order of the rows.

    Args:
        parts: batches, and a number ``[B]`` for each of their rows.
        batch_size: rows of a whole batch.
        total: rows of all batches.

    Returns:
        Float32 ``[total]``, the same in every process.
    """
    found: Tensor | None = None
    for number, (part, values) in enumerate(parts):
        if found is None:
            found = values.new_zeros(total, dtype=torch.float32)
        start = number * batch_size + part.first
        found[start : start + part.rows] = values[: part.rows].float()
    if found is None:
        return torch.zeros(total)
    dist.all_reduce(found)  # every row is zero in all processes but its own
    return found


def _ids(ids: Any, taken: slice, total: int) -> Any:
    if isinstance(ids, Tensor):
        return ids[taken]
    lengths = ids.lengths.view(-1, total)
    ends = ids.lengths.cumsum(0).view(-1, total)
    pieces = [
        ids.values[int(end[taken][0] - length[taken][0]) : int(end[taken][-1])]
        for end, length in zip(ends, lengths, strict=True)
    ]
    return Jagged(torch.cat(pieces), lengths[:, taken].reshape(-1))
