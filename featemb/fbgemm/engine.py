"""`Engine`: FBGEMM's table-batched embedding over the memory of one table.

Shape letters: R rows, C width of a row, P that width filled up to a multiple of 4, N lookups.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featemb.fbgemm.optimizers import FUSED, optim_type

MULTIPLE = 4  # FBGEMM's kernels read rows in steps of 4 numbers


class _Ahead(NamedTuple):
    """A lookup whose step is still to come.

    Attributes:
        rows: what was looked up, int64 ``[N]``.
        vectors: what came out, ``[N, P]``; its backward pass is the step.
    """

    rows: Tensor
    vectors: Tensor

    def is_of(self, rows: Tensor) -> bool:
        """Whether these are the same rows, in the same memory."""
        return self.rows.data_ptr() == rows.data_ptr() and self.rows.shape == rows.shape


class Engine:
    """Looks rows up and steps them, by FBGEMM's fused kernels.

    FBGEMM updates rows inside of the backward pass of its lookup. That pass is run by `step`, and
    not by the network's own backward pass, which only brings the gradients here: so a table may be
    read several times, or by several backward passes, before one step of all of them.

    Args:
        whole: the table, float32 ``[R, P]``, contiguous; FBGEMM works on this memory.
        width: C.
        optimizer: one of `featemb.fbgemm.optimizers.FUSED`.

    Attributes:
        state: the optimizer's state by name, ``[R, P]`` or ``[R, 1]``.
        steps: how many steps were made.
    """

    def __init__(self, whole: Tensor, width: int, optimizer: str) -> None:
        self.fused, self.width, self.columns = FUSED[optimizer], width, whole.shape[1]
        # FBGEMM's mean over a row counts the columns that fill it up: rate and eps undo that
        self.scale = math.sqrt(width / self.columns) if self.fused.rowwise else 1.0
        self.kernel = self._made(whole)
        self.rate, self.steps = 0.0, 0
        self._ahead: _Ahead | None = None
        states = self.kernel.split_optimizer_states()[0] if self.fused.state else []
        rows = whole.shape[0]
        self.state = {
            name: one.view(rows, -1) for name, one in zip(self.fused.state, states, strict=True)
        }

    def _made(self, whole: Tensor) -> Any:
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            BoundsCheckMode,
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        cuda = whole.device.type == "cuda"
        place = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
        computes = ComputeDevice.CUDA if cuda else ComputeDevice.CPU
        settings = dict(self.fused.settings)
        if "eps" in settings:
            settings["eps"] *= self.scale
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(*whole.shape, place, computes)],
            optimizer=optim_type(self.fused.name),
            learning_rate=0.0,
            # sums of one row each: on the CPU the step of FBGEMM's lookup without sums takes
            # several times as long
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.FATAL,
            stochastic_rounding=False,
            device=whole.device,
            **settings,
        )
        weights = kernel.weights_dev if cuda else kernel.weights_host
        weights.data = whole.view(weights.shape)
        return kernel

    def bookkeeping(self) -> dict[str, Tensor]:
        """Return what FBGEMM holds beside rows and state, by its names."""
        ours = {one.data_ptr() for one in self.state.values()}
        buffers: dict[str, Tensor] = dict(self.kernel.named_buffers())
        return {n: one for n, one in buffers.items() if one.numel() and one.data_ptr() not in ours}

    def read(self, rows: Tensor) -> Tensor:
        """Return rows int64 ``[N]`` as ``[N, C]``; their step is prepared."""
        vectors = self._look_up(rows)
        self._ahead = _Ahead(rows, vectors)
        return vectors.detach()[:, : self.width]

    def step(self, rows: Tensor, grads: Tensor, rate: float) -> None:
        """Update rows by the gradients of their lookups; those of equal rows are summed.

        Args:
            rows: int64 ``[N]``.
            grads: ``[N, C]``.
            rate: learning rate.
        """
        ahead, self._ahead = self._ahead, None
        if rows.numel():
            if ahead is None or rate != self.rate or not ahead.is_of(rows):
                self.rate = rate
                ahead = _Ahead(rows, self._look_up(rows))
            torch.autograd.backward(ahead.vectors, F.pad(grads, (0, self.columns - self.width)))
        self.steps += 1

    def _look_up(self, rows: Tensor) -> Tensor:
        kernel = self.kernel
        if kernel.get_learning_rate() != self.rate * self.scale:
            kernel.set_learning_rate(self.rate * self.scale)
        if self.fused.counts:  # FBGEMM counts lookups, and takes them for steps
            kernel.iter.fill_(self.steps)
            kernel.iter_cpu.fill_(self.steps)
        ends = torch.arange(rows.numel() + 1, device=rows.device)
        with torch.enable_grad():
            vectors: Tensor = kernel(rows, ends)
        return vectors
