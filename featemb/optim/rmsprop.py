"""`RowRMSprop`: Adam without a first moment, one second moment a row, L2 for the steps between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featemb.optim.lazy import Params, RowOptimizer
from featemb.quantized import read_rows, update_rows
from featemb.rows import gather_rows, write_rows


class RowRMSprop(RowOptimizer):
    """RMSprop (Tieleman and Hinton, 2012) of two numbers a row, that counts the steps between.

    A row that was read k steps ago, with gradient g, second moment v and step number t::

        v = beta^k v + (1 - beta) mean(g^2)
        s = sqrt(v / (1 - beta^t)) + eps
        w = (w - lr g / s) / (1 + lr weight_decay k / s)

    So v is that of the dense optimizer, and so is L2 to first order: rows that are read rarely
    shrink for all the steps between, where other lazy optimizers shrink the often read ones most.
    The division is the implicit form of the decay, which never passes zero. At a row's first read
    k is 1; a row is decayed when it is read next, not before.

    Parameters that are not tables have one second moment an element, and k = 1.

    Args:
        params: parameters or parameter groups; row tables among them get row gradients.
        lr: learning rate.
        beta: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 strength.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        beta: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "eps": eps, "weight_decay": weight_decay})

    def _allocate(self, parameter: Tensor, group: dict[str, Any]) -> None:
        self._state(parameter, rowwise=parameter.dim() == 2)

    def _state(self, parameter: Tensor, rowwise: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            shape = (parameter.shape[0], 1) if rowwise else tuple(parameter.shape)
            empty = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["second"] = empty.new_zeros(shape)
            if rowwise:
                state["last"] = empty.new_zeros(shape)
        return state

    def _step_rows(self, table: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._state(table, rowwise=True)
        state["step"] += 1
        now = float(state["step"])
        weight, second = read_rows(table, rows), gather_rows(state["second"], rows)
        last = gather_rows(state["last"], rows)
        gap = torch.where(last > 0, now - last, 1.0)
        square = grad.square().mean(1, keepdim=True)
        self._update(weight, grad, second, square, gap, now, group)
        update_rows(table, rows, weight, grad)
        write_rows(state["second"], rows, second)
        write_rows(state["last"], rows, torch.full_like(last, now))

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self._state(parameter, rowwise=False)
            state["step"] += 1
            grad = parameter.grad
            assert grad is not None
            now, gap = float(state["step"]), torch.ones((), device=parameter.device)
            self._update(parameter, grad, state["second"], grad.square(), gap, now, group)

    @staticmethod
    def _update(
        weight: Tensor,
        grad: Tensor,
        second: Tensor,
        square: Tensor,
        gap: Tensor,
        now: float,
        group: dict[str, Any],
    ) -> None:
        beta = group["beta"]
        second.mul_(beta**gap).add_(square, alpha=1 - beta)
        scale = group["lr"] / ((second / (1 - beta**now)).sqrt() + group["eps"])
        weight.sub_(scale * grad).div_(1 + scale * group["weight_decay"] * gap)
