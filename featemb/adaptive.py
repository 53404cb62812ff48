"""`AdaptiveTable`: integer rows whose steps are trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featemb.parts.base import Part
from featemb.parts.stepped import GroupSteppedRows, group_of
from featemb.quantized import INTEGERS, QuantizedTable

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

_BETAS = (0.9, 0.999)
_EPS = 1e-8
SMALLEST = 2.0**-24


class AdaptiveTable(QuantizedTable):
    """A `QuantizedTable` of integers that moves the steps of the rows that it is given.

    A number w of a row, its gradient g and its step s give the step the gradient
    ``g (round(w / s) - w / s)`` where w is within range, else ``-g 2^(b-1)`` or
    ``g (2^(b-1) - 1)`` at its ends (Esser et al., 2020). The numbers of a step are summed, times
    ``1 / sqrt(U C (2^(b-1) - 1))``.

    Args:
        weight: fp32 ``[R, C]``, the initial rows.
        rows: "int8" or "int16".
        step: fp32 ``[G, 1]``, the initial steps of G groups of rows.
        seed: of the random rounding.
        starts: first row of each group; empty where each row is one, or all are one.
        step_lr: learning rate of the steps.
        adam: whether steps are moved by Adam, lazily, and not by plain gradient descent.

    Attributes:
        moments: fp32 ``[G, 2]``, Adam's two moments of each step; ``[0, 2]`` without Adam.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        **QuantizedTable.memory_parts,
        "moments": "optimizer state",
    }
    moments: Tensor

    def __init__(
        self,
        weight: Tensor,
        rows: str,
        step: Tensor,
        seed: int,
        starts: tuple[int, ...],
        step_lr: float,
        adam: bool,
    ) -> None:
        self.starts, self.step_lr, self.adam = starts, step_lr, adam
        super().__init__(weight, rows, step, seed)
        groups = step.shape[0] if adam else 0
        self.register_buffer("moments", torch.zeros(groups, 2, device=weight.device))

    def steps(self, rows: Tensor) -> Tensor:
        """Return the steps of rows: ``[U, 1]``, or ``[1, 1]`` where all have one."""
        return (
            self.step.index_select(0, group_of(rows, self.starts))
            if self.starts
            else super().steps(rows)
        )

    def adapt(self, rows: Tensor, weight: Tensor, grad: Tensor) -> None:
        """Move the steps of the rows, by the gradients that moved the rows."""
        groups, gradient = self._gradient(rows, weight, grad)
        if self.adam:
            gradient = self._direction(groups, gradient)
        moved = self.step[groups] - self.step_lr * gradient
        self.step[groups] = moved.clamp(min=SMALLEST)

    def _gradient(self, rows: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups ``[K]`` of some rows, and the gradients of their steps ``[K, 1]``."""
        half = 2 ** (INTEGERS[self.format] - 1)
        number = weight / self.steps(rows)
        code = number.round().clamp(-half, half - 1)
        inside = (number >= -half) & (number <= half - 1)
        slope = torch.where(inside, code - number, code)
        one = (grad * slope).sum(1, keepdim=True) / math.sqrt(max(1, grad.numel()) * (half - 1))
        if self.step.shape[0] == self.num_rows:
            return rows, one
        where = group_of(rows, self.starts) if self.starts else torch.zeros_like(rows)
        groups, index = torch.unique(where, return_inverse=True)
        return groups, one.new_zeros(len(groups), 1).index_add_(0, index, one)

    def _direction(self, groups: Tensor, gradient: Tensor) -> Tensor:
        """Return Adam's direction; the counter is that of the table's writes."""
        moments = self.moments[groups]
        first, second = moments[:, :1], moments[:, 1:]
        first = first.lerp(gradient, 1 - _BETAS[0])
        second = second.lerp(gradient.square(), 1 - _BETAS[1])
        self.moments[groups] = torch.cat((first, second), dim=1)
        bias = [1 - beta ** self.draws[1].double() for beta in _BETAS]
        root = (second / bias[1].float()).sqrt() + _EPS
        direction: Tensor = first / bias[0].float() / root
        return direction

    def frozen(self, codec: Codec) -> Part:
        """Return the rows as they are, whatever the codec."""
        if not self.starts:
            return super().frozen(codec)
        return GroupSteppedRows(
            codes=self.codes.clone(),
            step=self.step.clone(),
            offset=self.step.new_empty(0),
            bits=INTEGERS[self.format],
            width=self.width,
            starts=self.starts,
        )
