"""What processes do in tests/test_rank_checkpoint.py: jobs of two, of one, of three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sharded_jobs as jobs
import torch
import torch.distributed as dist

import featemb as fe
from featemb.torchrec import ShardedModel, shard
from featemb.torchrec.checkpoint import RankCheckpoint
from featemb.torchrec.local import Sharded
from featemb.torchrec.ranks import parts_of
from featemb.torchrec.steps import ShardOptimizer

CASES = (
    ("qr", "row_wise", "row_adam"),
    ("full", "table_wise", "row_adagrad"),
    ("qr", "row_wise", "row_rmsprop"),
)
_EPOCH = 6


def _model(case: tuple[str, str, str]) -> ShardedModel:
    spec, sharding, optimizer = case
    layer = fe.embedding(jobs.SCHEMA, spec, dim=16, seed=3)
    net = fe.models.build("dcnv2", embedding=layer, seed=0, hidden=[8], dropout=0.2)
    return shard(net, sharding, optimizer=optimizer)


def _fit(case: tuple[str, str, str], path: Path, stop: int | None, epochs: int = 4) -> Any:
    """Train for some epochs, or until a record of a number, as a killed job does."""
    torch.manual_seed(dist.get_rank())
    model = _model(case)

    def batches(epoch: int) -> Any:
        return parts_of(jobs.batches(_EPOCH * 4)[epoch * _EPOCH : (epoch + 1) * _EPOCH])

    def note(record: dict[str, Any]) -> None:
        if stop is not None and record["epoch"] > stop:
            raise KeyboardInterrupt

    checkpoint = RankCheckpoint(path, model)
    how = {"epochs": epochs, "lr": 0.01, "optimizer": case[2]}
    try:
        history = fe.fit(model, batches, on_record=note, checkpoint=checkpoint, **how)
    except KeyboardInterrupt:
        return None
    return [record["train_loss"] for record in history.records], model.gathered(to=None)


def _name(case: tuple[str, str, str]) -> str:
    return "-".join(case).replace("(", "_").replace(")", "_")


def stopped(rank: int, folder: Path) -> dict[Any, Any]:
    """Train without a stop, and stop another training after its second epoch."""
    found = {}
    for case in CASES:
        found[case] = _fit(case, folder / f"whole-{_name(case)}", None)
        assert _fit(case, folder / _name(case), 2) is None
    return found


def resumed(rank: int, folder: Path) -> dict[Any, Any]:
    """Go on from the second epoch."""
    return {case: _fit(case, folder / _name(case), None) for case in CASES}


def _assembled(value: Any) -> Any:
    """Bring the shards of a state together."""
    if isinstance(value, Sharded):
        whole = torch.zeros(value.whole)
        own = [box for box in value.boxes if box.rank == dist.get_rank()]
        for box, part in zip(own, value.parts, strict=True):
            rows, columns = slice(box.row, box.row + box.rows), slice(box.column, None)
            whole[rows, columns][:, : box.columns] = part
        dist.all_reduce(whole)
        return whole
    if isinstance(value, dict):
        return {name: _assembled(one) for name, one in value.items()}
    return value


def restored(rank: int, folder: Path) -> dict[Any, Any]:
    """Read checkpoints; return model and optimizers' state with whole rows."""
    found = {}
    for case in CASES:
        model = _model(case)
        checkpoint = RankCheckpoint(folder / _name(case), model)
        saved = checkpoint.read()
        assert saved is not None
        checkpoint.restore(model, saved)
        made = fe.optim.build(model, 0.01, case[2])
        for optimizer, state in zip(made, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        rows = [one.state_dict() for one in made if isinstance(one, ShardOptimizer)]
        found[case] = _assembled(model.state_dict()), [_assembled(one) for one in rows]
        assert saved["at"]["epoch"] == 2
    return found


def damaged(rank: int, folder: Path) -> str:
    """Go on from a folder one of whose files has other bytes."""
    try:
        _fit(CASES[0], folder / "damaged", None)
    except fe.FormatError as error:
        return str(error)
    return ""


def other(rank: int, folder: Path) -> str:
    """Go on from a folder of another model."""
    try:
        _fit(CASES[1], folder / _name(CASES[0]), None)
    except fe.FormatError as error:
        return str(error)
    return ""
