"""`FbgemmSteps`: FBGEMM's optimizer of one table, as a training loop sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featemb.errors import RunError
from featemb.fbgemm.optimizers import check_has, require_fbgemm
from featemb.optim.lazy import check_settings
from featemb.rows import claim

if TYPE_CHECKING:
    from featemb.fbgemm.rows import FbgemmRows


class FbgemmSteps(torch.optim.Optimizer):
    """Steps the rows of a table that were looked up, by FBGEMM's fused kernel.

    What it computes is what the lazy optimizer of `featemb.optim` by that name does, up to
    rounding. Nothing changes before `step` is called.

    Args:
        table: the table.
        name: as in `featemb.optim.build`.
        lr: learning rate.
        weight_decay: must be 0.

    Raises:
        ConfigError: FBGEMM is missing, has no such optimizer on the table's device, or a setting
            is out of range.
    """

    def __init__(self, table: FbgemmRows, name: str, lr: float, weight_decay: float = 0.0) -> None:
        check_settings({"lr": lr})
        require_fbgemm()
        check_has(name, weight_decay, table.weight.device.type)
        super().__init__([table.weight], {"lr": lr})
        self.table, self.engine = table, table.train_by(name)
        self._show()
        claim(table.weight, self, row_gradients=True)

    def _show(self) -> None:
        """Make the kernel's own memory the state that others see."""
        own: dict[str, Tensor] = dict(self.engine.state)
        if self.engine.fused.counts:
            own["step"] = torch.tensor(float(self.engine.steps))
        self.state[self.table.weight] = own

    def allocate(self) -> None:
        """Make the state now (for byte counting): FBGEMM has done so already."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient.

        Raises:
            RunError: the gradient is of the whole table, which FBGEMM has no step for.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad = self.table.weight.grad
        if grad is None:
            return loss
        if grad.layout != torch.sparse_coo:
            raise RunError(
                "the kernel 'fbgemm' steps rows that were looked up through their table; something "
                f"else gave the table {list(grad.shape)} a gradient of all its rows"
            )
        rate = self.param_groups[0]["lr"]
        self.engine.step(grad._indices()[0], grad._values(), rate)
        if self.engine.fused.counts:
            self.state[self.table.weight]["step"].fill_(self.engine.steps)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises:
            ValueError: it is of another optimizer or table.
        """
        super().load_state_dict(state_dict)
        found = self.state[self.table.weight]
        own = self.engine.state
        shapes = {name: tuple(one.shape) for name, one in own.items()}
        given = {name: tuple(one.shape) for name, one in found.items() if name != "step"}
        self._show()
        if shapes != given:
            raise ValueError(f"the rows have the state {shapes}, got {given}")
        with torch.no_grad():
            for name, one in own.items():
                one.copy_(found[name])
        self.engine.steps = int(found.get("step", 0))
        self._show()
