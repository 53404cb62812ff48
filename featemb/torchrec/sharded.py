"""`shard`: a model whose rows are divided among the processes of a job by TorchRec."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.optim import OPTIMIZERS
from featemb.torchrec.local import LocalRows, Sharded, engine, fused_params
from featemb.torchrec.rows import TorchRecRows, require_torchrec, to_torchrec
from featemb.torchrec.sharding import boxes_of, plan_for, tables_of
from featemb.torchrec.steps import state_widths

_ROWS = ".rows"


class ShardedModel(nn.Module):
    """A model under TorchRec's ``DistributedModelParallel``, for `featemb.fit` or another loop.

    Each process gives its own part of a batch and gets logits of it. Rows live in one process each;
    addresses, combinations and the network are copies whose gradients are averaged.

    Its state dict holds whole dense tensors and, for every table, a `Sharded`: what this process
    has of it. `gathered` brings the rows together.

    Attributes:
        dmp: the ``DistributedModelParallel``.
        locals: the shards of this process by table path.
        engine: what steps the rows, "fused" or "rows".
    """

    def __init__(self, dmp: nn.Module, local: Mapping[str, LocalRows], kind: str) -> None:
        super().__init__()
        self.dmp, self.locals, self.engine = dmp, dict(local), kind

    @property
    def net(self) -> nn.Module:
        """The model itself, with sharded tables inside."""
        net = self.dmp.module
        assert isinstance(net, nn.Module)
        return net

    def forward(self, *inputs: Any) -> Tensor:
        """Return the model's answer for this process's part of a batch."""
        answer: Tensor = self.dmp(*inputs)
        return answer

    def mean_of_ranks(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over all processes."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    def dense_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers but for the rows, by their names in the plain model."""
        own = [*self.net.named_parameters(), *self.net.named_buffers()]
        tables = tuple(f"{path}." for path in self.locals)
        return {name: value.detach() for name, value in own if not name.startswith(tables)}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return dense tensors, and a `Sharded` for each table."""
        rows = {path + _ROWS: one.spread(one.views) for path, one in self.locals.items()}
        return {**self.dense_state(), **rows}

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take what `state_dict` gave, in place.

        Raises:
            RuntimeError: names or shapes are those of another model.
        """
        own = self.state_dict()
        if set(own) != set(state_dict):
            raise RuntimeError(
                f"other names than the model's: {sorted(set(own) ^ set(state_dict))}"
            )
        for name, mine in own.items():
            if isinstance(mine, Sharded):
                for to, source in zip(mine.parts, state_dict[name].parts, strict=True):
                    to.copy_(source)
            elif mine.shape != state_dict[name].shape:
                raise RuntimeError(f"{name} has shape {list(mine.shape)} in the model")
            else:
                mine.copy_(state_dict[name])
        return None

    @torch.no_grad()
    def gathered(self, to: int | None = 0) -> dict[str, Tensor] | None:
        """Return the state dict of the plain model, for ``load_state_dict`` of one built anew.

        Every process must call it.

        Args:
            to: the process that gets it; None: every one. It needs memory for all rows.
        """
        rank = dist.get_rank()
        state: dict[str, Tensor] = {}
        for path, local in self.locals.items():
            whole = _gather(local, to)
            if whole is not None:
                table = self.net.get_submodule(path)
                assert isinstance(table, TorchRecRows)
                state[f"{path}.weight"] = whole[:, : table.width]
        wanted = to is None or rank == to
        return {**self.dense_state(), **state} if wanted else None


def _gather(local: LocalRows, to: int | None) -> Tensor | None:
    """Bring a table's shards together; each is sent by the process that holds it."""
    rank = dist.get_rank()
    wanted = to is None or rank == to
    device = local.views[0].device if local.views else _device()
    whole = torch.empty(local.shape) if wanted else None  # on the CPU: a GPU may hold a part only
    mine = iter(local.views)
    for box in local.boxes:
        if not box.rows:
            continue
        piece = next(mine) if box.rank == rank else None
        if to is None:
            piece = torch.empty(box.rows, box.columns, device=device) if piece is None else piece
            piece = piece.contiguous()
            dist.broadcast(piece, box.rank)
        elif box.rank != to:
            if piece is not None:
                dist.send(piece.contiguous(), to)
            elif wanted:
                piece = torch.empty(box.rows, box.columns, device=device)
                dist.recv(piece, box.rank)
        if whole is not None and piece is not None:
            at = whole[box.row : box.row + box.rows, box.column : box.column + box.columns]
            at.copy_(piece)
    return whole


def _device() -> torch.device:
    cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def shard(
    model: nn.Module,
    sharding: str = "row_wise",
    *,
    optimizer: str = "row_adam",
    weight_decay: float = 0.0,
    engine_name: str = "auto",
    device: torch.device | str | None = None,
) -> ShardedModel:
    """Divide a model's rows among the processes of the default process group.

    The model is taken apart: every process must have built the same one (same seed). Where its
    layers were made inside of `featemb.starting.rows_later`, no process ever holds more rows than
    its own.

    Args:
        model: holds at least one `featemb.FeatureEmbedding`; its rows stay as they are.
        sharding: "row_wise", "column_wise", "table_wise" or "auto" (see `sharding.plan_for`).
        optimizer: what will step the rows, as in `featemb.optim.build`.
        weight_decay: of the rows.
        engine_name: "fused": FBGEMM's optimizers inside of the backward pass; "rows": featemb's own
            over the local shards; "auto": the first where FBGEMM has the optimizer here.
        device: where rows and network are; None takes the backend's.

    Raises:
        ConfigError: the rows cannot be divided, or not for this optimizer; there is no process
            group; a name is unknown.
    """
    require_torchrec()
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel

    if not dist.is_initialized():
        raise ConfigError("there is no process group: call torch.distributed.init_process_group")
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {optimizer!r}; Allowed: {', '.join(OPTIMIZERS)}")
    _check_network(model)
    place = _device() if device is None else torch.device(device)
    kind = engine(optimizer, weight_decay, place.type, engine_name)
    to_torchrec(model)
    sharder = EmbeddingCollectionSharder(fused_params=fused_params(optimizer, kind))
    plan = plan_for(model, sharding, sharder, place)
    shapes = {path: table.shape for path, table in tables_of(model).items()}
    boxes = {path: boxes_of(plan, path, table) for path, table in tables_of(model).items()}
    _check_widths(model, optimizer, boxes)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # of torch, on an argument that TorchRec uses
        dmp = DistributedModelParallel(model, device=place, plan=plan, sharders=[sharder])
    found = {}
    for path, table in tables_of(model).items():
        for parameter in table.collection.parameters():
            parameter.stepped_apart = True
        found[path] = table.local = LocalRows(
            path, _kernels(table.collection), shapes[path], boxes[path], kind, optimizer
        )
        if table.start is not None:
            found[path].begin(table.start, table.width, dist.get_rank())
    return ShardedModel(dmp, found, kind)


def _kernels(collection: Any) -> list[Any]:
    """Return TorchRec's kernels of a sharded collection, in this process."""
    return [kernel for lookup in collection._lookups for kernel in lookup._emb_modules]


def _check_network(model: nn.Module) -> None:
    """Refuse what needs the whole batch in one process.

    Raises:
        ConfigError: there is batch normalisation.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ConfigError(
            "batch normalisation takes statistics of a whole batch, which several processes "
            "divide: build the model without batch_norm"
        )


def _check_widths(model: nn.Module, optimizer: str, boxes: Mapping[str, Any]) -> None:
    """Refuse an optimizer with one number a row where a row is divided, or filled up.

    Raises:
        ConfigError: names the table.
    """
    widths = state_widths(lambda tables: OPTIMIZERS[optimizer](tables, lr=1.0))
    if all(width is None for width in widths.values()):
        return
    for path, table in tables_of(model).items():
        if any(box.columns != table.width for box in boxes[path]):
            raise ConfigError(
                f"{optimizer} keeps one number for a whole row, and the rows of {path} "
                f"({table.width} wide) are divided by columns or filled up to a multiple of 4"
            )
