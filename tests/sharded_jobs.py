"""What two processes do in tests/test_torchrec_sharding.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import featemb as fe
from featemb.models import build
from featemb.rows import RowTable
from featemb.starting import rows_later
from featemb.torchrec import FeatureEmbeddingBagCollection, shard, to_torchrec
from featemb.torchrec.ranks import part_of

SCHEMA = fe.Schema(
    [
        fe.Feature("user", 400),
        fe.Feature("item", 90),
        fe.Feature("tags", 30, multi=True, pooling="mean"),
    ]
)
SPECS = ("full", "unified(lookups=2, rows=101)", "qr")
OTHERS = (
    "hash",
    "multi_hash(weights=0.1)",
    "double_hash",
    "frequency",
    "mde",
    "lowdim",
    "robe",
    "unified(rows=101) + lowdim",
)
SHARDINGS = ("row_wise", "table_wise", "column_wise", "auto")
STEPS = 50


class Batch(NamedTuple):
    ids: fe.Jagged
    numeric: Tensor | None
    label: Tensor


def batches(count: int = STEPS) -> list[Batch]:
    """Batches of 37 rows, which two processes cannot halve; every seventh has one row alone."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        rows = 37 if number % 7 else 1
        ids = [torch.randint(0, high, (rows,), generator=generator) for high in (400, 90)]
        bags = torch.randint(0, 4, (rows,), generator=generator)
        tags = torch.randint(0, 30, (int(bags.sum()),), generator=generator)
        label = torch.randint(0, 2, (rows,), generator=generator).float()
        lengths = torch.cat([torch.ones(2 * rows, dtype=torch.int64), bags])
        made.append(Batch(fe.Jagged(torch.cat([*ids, tags]), lengths), None, label))
    return made


def network(spec: str) -> nn.Module:
    layer = fe.embedding(SCHEMA, spec, dim=16, seed=3)
    return build("deepfm", embedding=layer, seed=0, hidden=[16], dropout=0.0)


def losses(
    model: nn.Module,
    data: Sequence[Any],
    optimizer: str,
    mean: Callable[[Tensor], Tensor] = Tensor.clone,
    optimizers: list[Any] | None = None,
) -> list[float]:
    """Train by the steps of `featemb.fit`; return the loss of every batch."""
    made = fe.optim.build(model, 0.01, optimizer) if optimizers is None else optimizers
    layers = fe.staging.layers(model)
    model.train()
    return [float(mean(fe.staging.update(model, layers, batch, made))) for batch in data]


def compare(
    spec: str, sharding: str, optimizer: str, rank: int, engine: str = "auto", steps: int = STEPS
) -> Any:
    """Return the largest differences of losses and weights to one process, and the engine."""
    plain = network(spec)
    wanted = losses(plain, batches(steps), optimizer)
    model = shard(network(spec), sharding, optimizer=optimizer, engine_name=engine)
    parts = [part_of(batch, rank, 2) for batch in batches(steps)]
    found = losses(model, parts, optimizer, model.mean_of_ranks)
    state = model.gathered(to=None)
    same = network(spec)
    same.load_state_dict(state)
    apart = max(
        float((one - other).detach().abs().max())
        for one, other in zip(plain.parameters(), same.parameters(), strict=True)
    )
    plain.eval(), same.eval()
    ids = batches(1)[0].ids
    frozen = float((plain.freeze()(ids) - same.freeze()(ids)).abs().max())
    difference = max(abs(a - b) for a, b in zip(wanted, found, strict=True))
    return difference, apart, frozen, model.engine


def many(rank: int, folder: Path) -> dict[Any, Any]:
    """Three methods, all ways of dividing, steps of FBGEMM's and of featemb's."""
    cases = [
        *itertools.product(SPECS, ("row_wise", "table_wise"), ("row_adam",)),
        ("full", "row_wise", "row_adagrad"),
        ("unified(lookups=2, rows=101)", "table_wise", "row_sgd"),
        ("qr", "column_wise", "row_adagrad"),
        ("qr", "auto", "row_adam"),
    ]
    return {case: compare(*case, rank) for case in cases}


def others(rank: int, folder: Path) -> dict[Any, Any]:
    """The other methods that are lookups."""
    return {spec: compare(spec, "row_wise", "row_sgd", rank, "rows", 10) for spec in OTHERS}


def held(rank: int, folder: Path) -> dict[str, int]:
    """Rows of the table of `full` that this process holds."""
    found = {}
    for sharding in SHARDINGS[:3]:
        model = shard(network("full"), sharding)
        (path,) = (path for path, rows in model.locals.items() if rows.shape[1] == 16)
        found[sharding] = sum(view.numel() for view in model.locals[path].views)
    return found


def made_later(rank: int, folder: Path) -> dict[str, float]:
    """Rows that each process makes alone, held against those of a network made at once."""
    found = {}
    for spec in ("qr", "mde", "multi_hash(weights=0.1)"):
        with rows_later():
            net = network(spec)
        tables = [one for one in net.modules() if isinstance(one, RowTable)]
        assert all(table.weight.is_meta for table in tables)
        for sharding in SHARDINGS[:3]:
            with rows_later():
                model = shard(network(spec), sharding, optimizer="row_sgd")
            state = model.gathered(to=None)
            assert state is not None
            wanted = network(spec).state_dict()
            assert set(state) == set(wanted)
            apart = max(float((state[name] - one).abs().max()) for name, one in wanted.items())
            found[f"{spec} {sharding}"] = apart
    return found


def whole_weights(rank: int, folder: Path) -> Any:
    """A model of one's own with a stand-in, under DistributedModelParallel as TorchRec users do."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from featemb.torchrec.local import fused_params
    from featemb.torchrec.sharding import plan_for

    tables = [EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=60, feature_names=["x"])]
    plain = FeatureEmbeddingBagCollection(tables, "unified(rows=21, lookups=2)")
    model = to_torchrec(FeatureEmbeddingBagCollection(tables, "unified(rows=21, lookups=2)"))
    sharder = EmbeddingCollectionSharder(fused_params=fused_params("row_sgd", "fused"))
    plan = plan_for(model, "row_wise", sharder, torch.device("cpu"))
    parallel = DistributedModelParallel(model, plan=plan, sharders=[sharder])
    asked = KeyedJaggedTensor(["x"], torch.tensor([rank, 59, 3]), lengths=torch.tensor([1, 0, 2]))
    return float((parallel(asked).values() - plain(asked).values()).abs().max())


def refused(rank: int, folder: Path) -> dict[str, str]:
    """Say why models cannot be divided."""
    cases: dict[str, Callable[[], Any]] = {
        "cafe": lambda: shard(network("cafe")),
        "batch_norm": lambda: shard(
            build("dcnv2", embedding=fe.embedding(SCHEMA, dim=8), batch_norm=True)
        ),
        "fused": lambda: shard(network("full"), engine_name="fused"),
        "rmsprop": lambda: shard(network("full"), "column_wise", optimizer="row_rmsprop"),
        "other": lambda: fe.optim.build(shard(network("full")), 0.1, "row_sgd"),
        "sharding": lambda: shard(network("full"), "rows"),
    }
    found = {}
    for name, case in cases.items():
        try:
            case()
        except fe.ConfigError as error:
            found[name] = str(error)
    return found
