"""`RowAdam`, `RowAdagrad` and `RowSGD`: a step touches the rows of the batch only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from featemb.errors import ConfigError
from featemb.quantized import read_rows, update_rows
from featemb.rows import claim, gather_rows, touched_rows, write_rows

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a parameter group that are out of range.

    Raises:
        ConfigError: names the setting and its value.
    """
    for name in ("lr", "weight_decay", "eps"):
        if not settings.get(name, 0) >= 0:
            raise ConfigError(f"{name} must be >= 0, got {settings[name]!r}")
    for beta in settings.get("betas", ()):
        if not 0 <= beta < 1:
            raise ConfigError(f"betas must be >= 0 and < 1, got {settings['betas']!r}")
    if not 0 <= settings.get("beta", 0) < 1:
        raise ConfigError(f"beta must be >= 0 and < 1, got {settings['beta']!r}")


def _zeros(parameter: Tensor, width: int | None = None) -> Tensor:
    """Zeros for a parameter's state: of its shape, or ``width`` numbers a row."""
    if width is None and parameter.layout == torch.strided:
        return torch.zeros_like(parameter)
    shape = tuple(parameter.shape) if width is None else (parameter.shape[0], width)
    return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


class RowOptimizer(torch.optim.Optimizer):
    """Splits every group's parameters by the kind of their gradient."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters (the constructor does so too); tables among them get row gradients."""
        check_settings(param_group)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            claim(parameter, self, row_gradients=True)

    def allocate(self) -> None:
        """Make the state of every parameter now, not at its first step (for byte counting).

        Every parameter of two dimensions counts as a table.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                self._allocate(parameter, group)

    def _allocate(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Make the state of a parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout == torch.sparse_coo:
                    self._step_rows(parameter, *touched_rows(parameter.grad), group)
                else:
                    dense.append(parameter)
            if dense:
                self._step_dense(dense, group)
        return loss

    def _step_rows(self, table: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        """Update the rows int64 ``[U]`` of a table by their gradients ``[U, C]``."""
        raise NotImplementedError

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update whole parameters by their dense gradients."""
        raise NotImplementedError


class RowAdam(RowOptimizer):
    """Adam (Kingma and Ba, 2015) that touches only the rows of the batch ("lazy Adam").

    Args:
        params: parameters or parameter groups; row tables among them get row gradients.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: L2 strength; reaches a row only when the row is read.
        decoupled: whether the decay is decoupled from the moments (AdamW) or added to the gradient.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "fused": True,  # torch then moves a loaded step counter to its parameter's device
        }
        super().__init__(params, defaults)

    def _allocate(self, parameter: Tensor, group: dict[str, Any]) -> None:
        self._moments(parameter)

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = _zeros(parameter)
            state["exp_avg_sq"] = _zeros(parameter)
        return state

    def _step_rows(self, table: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._moments(table)
        whole = (state["exp_avg"], state["exp_avg_sq"])
        exp_avg, exp_avg_sq = (gather_rows(part, rows) for part in whole)
        weight = read_rows(table, rows)
        self._adam([weight], [grad], [exp_avg], [exp_avg_sq], [state["step"]], group)
        update_rows(table, rows, weight, grad)
        for part, new in zip(whole, (exp_avg, exp_avg_sq), strict=True):
            write_rows(part, rows, new)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._moments(parameter) for parameter in parameters]
        self._adam(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            group,
        )

    def _adam(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        update = adamw if group["decoupled"] else adam
        update(
            weights,
            grads,
            exp_avgs,
            exp_avg_sqs,
            [],
            steps,
            foreach=False,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class RowAdagrad(RowOptimizer):
    """Adagrad (Duchi et al., 2011) that touches only the rows of the batch.

    Without weight decay this is dense Adagrad, up to rounding: a zero gradient changes nothing
    there.

    Args:
        params: parameters or parameter groups; row tables among them get row gradients.
        lr: learning rate.
        eps: added to the root of the accumulator.
        weight_decay: L2 strength, added to the gradient of the rows that are read.
        rowwise: keep one accumulator a row (mean of the squared gradients) instead of one an
            element, as FBGEMM's row-wise Adagrad: state shrinks by the row's width.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        rowwise: bool = False,
    ) -> None:
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "rowwise": rowwise}
        super().__init__(params, defaults)

    def _allocate(self, parameter: Tensor, group: dict[str, Any]) -> None:
        self._accumulator(parameter, group["rowwise"])

    def _accumulator(self, parameter: Tensor, rowwise: bool) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["sum"] = _zeros(parameter, 1 if rowwise and parameter.dim() == 2 else None)
        accumulator: Tensor = state["sum"]
        return accumulator

    def _step_rows(self, table: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        whole = self._accumulator(table, group["rowwise"])
        weight, total = read_rows(table, rows), gather_rows(whole, rows)
        self._adagrad(weight, grad, total, group)
        update_rows(table, rows, weight, grad)
        write_rows(whole, rows, total)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                total = self._accumulator(parameter, rowwise=False)
                self._adagrad(parameter, parameter.grad, total, group)

    @staticmethod
    def _adagrad(weight: Tensor, grad: Tensor, total: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad.add(weight, alpha=group["weight_decay"])
        square = grad.square()
        total.add_(square if total.shape == grad.shape else square.mean(1, keepdim=True))
        weight.addcdiv_(grad, total.sqrt().add_(group["eps"]), value=-group["lr"])


class RowSGD(RowOptimizer):
    """Stochastic gradient descent that touches only the rows of the batch; it keeps no state.

    Args:
        params: parameters or parameter groups; row tables among them get row gradients.
        lr: learning rate.
        weight_decay: L2 strength, added to the gradient of the rows that are read.
    """

    def __init__(self, params: Params, lr: float = 1e-1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def _step_rows(self, table: Tensor, rows: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        weight = read_rows(table, rows)
        self._sgd(weight, grad, group)
        update_rows(table, rows, weight, grad)

    def _step_dense(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self._sgd(parameter, parameter.grad, group)

    @staticmethod
    def _sgd(weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(grad, alpha=-group["lr"])
