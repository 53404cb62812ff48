"""Tables placed by TorchRec's planner, as it would place them for ``DistributedModelParallel``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from featemb.placement import HOST, Devices, Placement, Shard, complete, replicate
from featemb.tables import Table, shares

_FLOAT = 4
_KINDS = ("table_wise", "row_wise", "data_parallel")


def by_torchrec(found: Sequence[Table], devices: Devices) -> Placement:
    """Place tables by TorchRec's ``EmbeddingShardingPlanner``, without a GPU and without memory.

    It chooses among what keeps a row in one piece, since its optimizer state goes with it: tables
    whole on a device, their rows over all, or a copy on each. The state is given to the planner as
    further columns, so that it prices what featemb counts; its own reserve is that of the devices.
    The host's memory is shared out evenly among the GPUs' processes, as the planner does. Tables
    that it leaves to unified memory are on the host.

    Raises:
        ConfigError: there is no GPU to plan for.
    """
    from torchrec.distributed.planner.types import PlannerError

    free = devices.free()
    small = replicate([table for table in found if table.replicated], devices, free)
    tables = {f"t{number}": table for number, table in enumerate(_divisible(found))}
    if not tables:
        return complete("torchrec", small, 0, free)
    try:
        plan = _plan(tables, devices, free)
    except PlannerError as error:
        left = sum(table.size for table in tables.values())
        return complete("torchrec", small, left, free, str(error).splitlines()[0])
    shards = [
        shard for name, table in tables.items() for shard in _shards(table, plan[name], devices)
    ]
    return complete("torchrec", [*small, *shards], 0, free)


def _divisible(found: Sequence[Table]) -> Iterator[Table]:
    return (table for table in found if not table.replicated)


def _plan(tables: dict[str, Table], devices: Devices, free: dict[str, int]) -> Any:
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    collection = EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=name,
                embedding_dim=_columns(table),
                num_embeddings=table.rows,
                feature_names=[name],
            )
            for name, table in tables.items()
        ],
    )
    planner = EmbeddingShardingPlanner(
        topology=_topology(devices, free),
        storage_reservation=FixedPercentageStorageReservation(0.0),
        constraints={
            name: ParameterConstraints(
                sharding_types=list(_KINDS), pooling_factors=[float(table.lookups)]
            )
            for name, table in tables.items()
        },
        batch_size=1,  # buffers of inputs and outputs are part of the reserve
        debug=False,
    )
    sharders: list[Any] = [EmbeddingBagCollectionSharder()]
    return next(iter(planner.plan(collection, sharders).plan.values()))


def _topology(devices: Devices, free: dict[str, int]) -> Any:
    from torchrec.distributed.planner import Topology

    logger = logging.getLogger("torchrec.distributed.planner.types")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it asks for a factory that wants to know the hardware's name
    try:
        return Topology(
            world_size=devices.gpus,
            local_world_size=devices.gpus,
            compute_device="cuda",
            hbm_cap=max(0, min(free[name] for name in devices.names())),
            ddr_cap=max(0, free[HOST]) // devices.gpus,
        )
    finally:
        logger.setLevel(before)


def _columns(table: Table) -> int:
    """Return fp32 columns that take a row's bytes, state included."""
    return -(-table.size // (table.rows * _FLOAT))


def _shards(table: Table, sharding: Any, devices: Devices) -> list[Shard]:
    """Read a table's shards."""
    on_host = "uvm" in sharding.compute_kernel
    if sharding.sharding_spec is None:  # data parallel: each process holds it whole
        return [
            Shard(table.name, name, 0, table.rows, table.size, "replicated")
            for name in devices.names()
        ]
    pieces = sharding.sharding_spec.shards
    sizes = shares(table.size, [piece.shard_sizes[0] for piece in pieces])
    how = "whole" if len(pieces) == 1 else sharding.sharding_type.replace("_wise", "s")
    return [
        Shard(
            table.name,
            HOST if on_host else f"gpu:{piece.placement.rank()}",
            piece.shard_offsets[0],
            piece.shard_sizes[0],
            size,
            how,
        )
        for piece, size in zip(pieces, sizes, strict=True)
        if size
    ]
