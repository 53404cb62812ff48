"""Plans: which process holds which rows or columns of which table."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from featemb.errors import ConfigError, nearest
from featemb.torchrec.local import Box
from featemb.torchrec.rows import TorchRecRows

SHARDINGS = ("row_wise", "column_wise", "table_wise", "auto")
_LEAST_COLUMNS = 4  # of a shard; FBGEMM reads rows in steps of 4 numbers
_KERNEL = "fused"


def tables_of(model: nn.Module) -> dict[str, TorchRecRows]:
    """Return the TorchRec tables of a model by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, TorchRecRows)}


def plan_for(model: nn.Module, sharding: str, sharder: Any, device: torch.device) -> Any:
    """Return a TorchRec ``ShardingPlan`` of all tables of a model, the same in every process.

    Args:
        model: see `featemb.torchrec.to_torchrec`.
        sharding: "row_wise": each process holds an equal part of every table's rows; "column_wise":
            of its columns, where it has 4 for each, else as table-wise; "table_wise": whole tables,
            the largest first, each to the process that holds least; "auto": by TorchRec's planner.
        sharder: of embedding collections.
        device: where the rows will be.

    Raises:
        ConfigError: there is no such sharding.
    """
    from torchrec.distributed.types import ShardingPlan

    if sharding not in SHARDINGS:
        raise ConfigError(f"unknown sharding {sharding!r}; {nearest(str(sharding), SHARDINGS)}")
    if sharding == "auto":
        return _planned(model, sharder, device)
    world = dist.get_world_size()
    held = [0] * world
    plans = {}
    tables = sorted(tables_of(model).items(), key=lambda one: -one[1].parameter.numel())
    for path, table in tables:
        plans[f"{path}.collection"] = _plan(table, sharding, sharder, device, held)
    return ShardingPlan(plan=plans)


def _plan(
    table: TorchRecRows, sharding: str, sharder: Any, device: torch.device, held: list[int]
) -> Any:
    """Return the plan of one table; ``held`` counts the numbers that each process holds."""
    from torchrec.distributed import sharding_plan as plans

    world = len(held)
    rows, columns = table.parameter.shape
    if sharding == "row_wise":
        chosen = plans.row_wise(compute_kernel=_KERNEL)
    elif sharding == "column_wise" and columns % (world * _LEAST_COLUMNS) == 0 and world > 1:
        chosen = plans.column_wise(ranks=list(range(world)), compute_kernel=_KERNEL)
    else:
        rank = held.index(min(held))
        held[rank] += rows * columns
        chosen = plans.table_wise(rank=rank, compute_kernel=_KERNEL)
    return plans.construct_module_sharding_plan(
        table.collection,
        per_param_sharding={table.name: chosen},
        sharder=sharder,
        local_size=_local_size(),
        world_size=world,
        device_type=device.type,
    )


def _local_size() -> int:
    from torchrec.distributed.comm import get_local_size

    return int(get_local_size(dist.get_world_size()))


def _planned(model: nn.Module, sharder: Any, device: torch.device) -> Any:
    """Ask TorchRec's planner, once for all processes."""
    from torchrec.distributed.planner import (
        EmbeddingShardingPlanner,
        ParameterConstraints,
        Topology,
    )

    kinds = ["table_wise", "row_wise"]
    with _without_advice():
        planner = EmbeddingShardingPlanner(
            topology=Topology(
                local_world_size=_local_size(),
                world_size=dist.get_world_size(),
                compute_device=device.type,
            ),
            constraints={
                table.name: ParameterConstraints(sharding_types=kinds, compute_kernels=[_KERNEL])
                for table in tables_of(model).values()
            },
            debug=False,
        )
        return planner.collective_plan(model, [sharder], dist.group.WORLD)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Leave out what TorchRec's planner advises those who configure it."""
    logger = logging.getLogger("torchrec.distributed.planner")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


def boxes_of(plan: Any, path: str, table: TorchRecRows) -> list[Box]:
    """Return the places of a table's shards."""
    sharding = plan.plan[f"{path}.collection"][table.name]
    shards: Sequence[Any] = sharding.sharding_spec.shards
    return [Box(one.placement.rank(), *one.shard_offsets, *one.shard_sizes) for one in shards]
