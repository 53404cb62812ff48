"""`LocalRows`: the shards of a table that this process holds, and what steps them.

Rows are stepped by FBGEMM inside of the backward pass (*fused*) where it has the optimizer on this
device, else by featemb's own optimizers over the local shards (*rows*): either costs O(rows
touched). FBGEMM has SGD and Adagrad on both kinds of device, and Adam on CUDA alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.fbgemm.optimizers import FUSED, has, optim_type
from featemb.rows import RowTable
from featemb.starting import Start
from featemb.torchrec.steps import FusedSteps, RowSteps, ShardOptimizer

Engine = Literal["fused", "rows"]


@dataclass(frozen=True)
class Box:
    """A shard's place in its table.

    Attributes:
        rank: process that holds it.
        row: first row.
        column: first column.
        rows: number of rows.
        columns: number of columns.
    """

    rank: int
    row: int
    column: int
    rows: int
    columns: int


@dataclass
class Sharded:
    """A tensor with an entry a row of a table, as this process holds it.

    Attributes:
        table: name of the table.
        whole: shape of the tensor ``[R, C]``.
        boxes: places of all shards, of all processes.
        parts: this process's shards, in the order of its boxes.
        columns: numbers a row of a shard; None where they are the table's own.
    """

    table: str
    whole: tuple[int, int]
    boxes: tuple[Box, ...]
    parts: list[Tensor]
    columns: int | None = None


def engine(optimizer: str, weight_decay: float, device: str, wanted: str = "auto") -> Engine:
    """Return what steps the rows: FBGEMM in the backward pass, or featemb's optimizers.

    Raises:
        ConfigError: "fused" is asked for, and FBGEMM has no such optimizer on this device.
    """
    if wanted not in ("auto", "fused", "rows"):
        raise ConfigError(f"unknown engine {wanted!r}; Allowed: auto, fused, rows")
    # TorchRec may divide or fill up rows, of which a state of one number a row knows nothing
    fused = has(optimizer, weight_decay, device) and not FUSED[optimizer].rowwise
    if wanted == "fused" and not fused:
        decay = f" with weight_decay={weight_decay}" if weight_decay else ""
        raise ConfigError(
            f"FBGEMM has no fused {optimizer}{decay} on {device}; use the engine 'rows'"
        )
    return "fused" if fused and wanted != "rows" else "rows"


def fused_params(optimizer: str, kind: Engine) -> dict[str, Any]:
    """Return what FBGEMM's kernels are made with; learning rates are set before every step."""
    # without a fused step the kernel only holds the rows: SGD keeps no state
    fused = FUSED[optimizer if kind == "fused" else "row_sgd"]
    return {"optimizer": optim_type(fused.name), "learning_rate": 0.0, **fused.settings}


class LocalRows:
    """Shards of one table.

    Args:
        name: of the table.
        kernels: TorchRec's kernels that hold its shards, in this process.
        shape: of the table, ``[R, C]``.
        boxes: places of all shards, of all processes.
        kind: what steps the rows.
        optimizer: name of the optimizer that they were sharded for.

    Attributes:
        views: this process's shards.
    """

    def __init__(
        self,
        name: str,
        kernels: Sequence[Any],
        shape: tuple[int, int],
        boxes: Sequence[Box],
        kind: Engine,
        optimizer: str,
    ) -> None:
        self.name, self.shape, self.boxes, self.kind = name, shape, tuple(boxes), kind
        self.kernels = [kernel.emb_module for kernel in kernels]
        self.views: list[Tensor] = []
        self.tables: list[RowTable] = []
        self.optimizer_name = optimizer
        self._steps: ShardOptimizer | None = None
        self._saved: list[tuple[Tensor, Tensor]] = []
        for kernel in kernels:
            views = list(kernel.split_embedding_weights())
            self.views += views
            if kind == "rows":
                tables = [RowTable.of(nn.Parameter(view.detach())) for view in views]
                self.tables += tables
                # TorchRec routes rows here and vectors back; the gather and its gradient are ours
                kernel.forward = _Gather(tables)

    def optimizer(self, name: str, lr: float, weight_decay: float) -> ShardOptimizer:
        """Return what steps the rows.

        Raises:
            ConfigError: the rows were sharded for another optimizer.
        """
        if name != self.optimizer_name:
            raise ConfigError(
                f"the rows were sharded for the optimizer {self.optimizer_name!r}, not {name!r}"
            )
        if self.kind == "fused":
            self._steps = FusedSteps(self, lr, weight_decay)
        else:
            self._steps = RowSteps(self, name, lr, weight_decay)
        return self._steps

    def before(self, training: bool) -> None:
        """Prepare a call: FBGEMM steps in the backward pass by the rate that is set now."""
        if self.kind != "fused":
            return
        if not training:  # FBGEMM counts every call as a step
            self._saved = [(one.iter.clone(), one.iter_cpu.clone()) for one in self.kernels]
        elif self._steps is not None:
            rate = self._steps.param_groups[0]["lr"]
            for one in self.kernels:
                if one.get_learning_rate() != rate:
                    one.set_learning_rate(rate)

    def after(self, training: bool) -> None:
        """Undo what a call without gradients counted."""
        if self.kind == "fused" and not training:
            for one, (steps, same) in zip(self.kernels, self._saved, strict=True):
                one.iter.copy_(steps)
                one.iter_cpu.copy_(same)

    @torch.no_grad()
    def begin(self, start: Start, width: int, rank: int) -> None:
        """Make the rows of this process's shards, of a table ``[R, width]`` before it is padded."""
        own = [box for box in self.boxes if box.rank == rank]
        for view in self.views:
            view.zero_()
        for row, block in start.blocks(self.shape[0], width):
            for box, view in zip(own, self.views, strict=True):
                first, end = max(row, box.row), min(row + len(block), box.row + box.rows)
                part = block[first - row : max(0, end - row), box.column : box.column + box.columns]
                if part.numel():
                    view[first - box.row : end - box.row, : part.shape[1]] = part

    def spread(self, parts: Sequence[Tensor], columns: int | None = None) -> Sharded:
        """Return tensors of this process's shards as one of the whole table.

        Args:
            parts: a tensor ``[rows, columns]`` for each shard of this process.
            columns: of a tensor that has so many numbers a row of a shard; None: as the table.
        """
        boxes, width = self.boxes, self.shape[1]
        if columns is not None:
            firsts = sorted({box.column for box in boxes})
            width = columns * len(firsts)
            boxes = tuple(
                Box(one.rank, one.row, firsts.index(one.column) * columns, one.rows, columns)
                for one in boxes
            )
        return Sharded(self.name, (self.shape[0], width), boxes, list(parts), columns)

    def empty(self, columns: int | None, dtype: torch.dtype, rank: int) -> Sharded:
        """Return as `spread` does, of new tensors."""
        device = self.views[0].device if self.views else None
        made = self.spread([], columns)
        made.parts = [
            torch.zeros(one.rows, one.columns, dtype=dtype, device=device)
            for one in made.boxes
            if one.rank == rank
        ]
        return made


class _Gather:
    """Gather of a kernel's tables, which follow each other in the rows that are asked for."""

    def __init__(self, tables: Sequence[RowTable]) -> None:
        self.tables = tables

    def __call__(self, features: Any) -> Tensor:
        values = features.values()
        if len(self.tables) == 1:
            vectors: Tensor = self.tables[0](values)
            return vectors
        parts = torch.split(values, features.length_per_key())
        return torch.cat([table(own) for table, own in zip(self.tables, parts, strict=True)])
