"""Optimizers of the shards of a table, as a training loop sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featemb.fbgemm.optimizers import FUSED
from featemb.optim import OPTIMIZERS

if TYPE_CHECKING:
    from featemb.torchrec.local import LocalRows, Sharded


class ShardOptimizer(torch.optim.Optimizer):
    """Abstract: steps the shards of one table that this process holds.

    Its state dict holds `Sharded` tensors, with the same names in every process, also in one that
    holds no shard: so a checkpoint can be read by another number of processes.

    Attributes:
        steps: how many steps were made.
    """

    def __init__(self, local: LocalRows, lr: float, weight_decay: float) -> None:
        # the rows are not listed: a process may have none, and torch numbers parameters
        super().__init__([nn.Parameter(torch.empty(0))], {"lr": lr, "weight_decay": weight_decay})
        self.local, self.steps = local, 0

    def state_dict(self) -> dict[str, Any]:
        """Return steps, learning rates and the state of the rows."""
        group = self.param_groups[0]
        rates = {name: group[name] for name in ("lr", "initial_lr") if name in group}
        return {"steps": self.steps, "rates": rates, "rows": self.row_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave, with the shards of this process.

        Raises:
            ValueError: it is of another optimizer.
        """
        own = self.row_state()
        if set(own) != set(state["rows"]):
            raise ValueError(f"rows have the state {sorted(own)}, got {sorted(state['rows'])}")
        self.steps = int(state["steps"])
        self.param_groups[0].update(state["rates"])
        for name, mine in own.items():
            for to, source in zip(mine.parts, state["rows"][name].parts, strict=True):
                to.copy_(source)
        self.restored()

    def row_state(self) -> dict[str, Sharded]:
        """Return the state of the rows by name."""
        raise NotImplementedError

    def restored(self) -> None:
        """Follow a state that was loaded."""


class FusedSteps(ShardOptimizer):
    """FBGEMM's: the rows are stepped in the backward pass, by the rate that is set before it."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Count the step that the backward pass has made."""
        self.steps += 1

    def row_state(self) -> dict[str, Sharded]:
        """Return the moments or sums that FBGEMM keeps."""
        found: dict[str, list[Tensor]] = {
            name: [] for name in FUSED[self.local.optimizer_name].state
        }
        for kernel in self.local.kernels:
            for one in kernel.get_optimizer_state():
                for name in found:
                    found[name].append(one[name])
        return {name: self.local.spread(parts) for name, parts in found.items()}

    def restored(self) -> None:
        """Set FBGEMM's own count of steps, of which it corrects the moments' bias."""
        for kernel in self.local.kernels:
            kernel.iter.fill_(self.steps)
            kernel.iter_cpu.fill_(self.steps)


class RowSteps(ShardOptimizer):
    """featemb's own, over the shards."""

    def __init__(self, local: LocalRows, name: str, lr: float, weight_decay: float) -> None:
        super().__init__(local, lr, weight_decay)
        self._make = partial(OPTIMIZERS[name], lr=lr, weight_decay=weight_decay)
        self.tables = [table.weight for table in local.tables]
        self.inner = self._make(self.tables) if self.tables else None

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step the rows that this process was asked for."""
        self.steps += 1
        if self.inner is None:
            return
        for group in self.inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.inner.step()
        for table in self.tables:
            table.grad = None

    def row_state(self) -> dict[str, Sharded]:
        """Return the optimizer's state, made where no step has made it yet."""
        if self.inner is not None and not self.inner.state:
            self.inner.allocate()  # type: ignore[attr-defined]
        found = {}
        for name, width in self._names().items():
            parts = [] if self.inner is None else [self.inner.state[t][name] for t in self.tables]
            found[name] = self.local.spread(parts, width)
        return found

    def restored(self) -> None:
        """Set the optimizer's own count of steps."""
        for table in self.tables:
            assert self.inner is not None
            for value in self.inner.state[table].values():
                if isinstance(value, Tensor) and value.dim() == 0:
                    value.fill_(self.steps)

    def _names(self) -> dict[str, int | None]:
        """Return names and widths of the state, as `state_widths`."""
        return state_widths(self._make)


def state_widths(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> dict[str, int | None]:
    """Return how many numbers a row an optimizer keeps, by name; None: as many as the row has."""
    width = 64
    table = nn.Parameter(torch.zeros(1, width))
    inner = make([table])
    inner.allocate()  # type: ignore[attr-defined]
    state = {n: v for n, v in inner.state[table].items() if isinstance(v, Tensor) and v.dim()}
    return {n: None if v.shape[1] == width else v.shape[1] for n, v in state.items()}
