"""`DenseAdam`: the dense-equivalent mode."""

from __future__ import annotations

from typing import Any

import torch

from featemb.optim.lazy import Params, check_settings
from featemb.quantized import refuse_handles
from featemb.rows import claim


class DenseAdam(torch.optim.Adam):
    """Adam over the whole table at every step: the dense-equivalent mode, O(table) a step.

    Args:
        params: parameters or parameter groups; row tables among them get dense gradients.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: L2 strength over every row, read or not.
        decoupled: decoupled decay (AdamW; Loshchilov and Hutter, 2019) or coupled L2.
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
        check_settings({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters (the constructor does so too); tables among them get dense gradients."""
        check_settings(param_group)
        super().add_param_group(param_group)
        refuse_handles(self.param_groups[-1]["params"], "DenseAdam")
        for parameter in self.param_groups[-1]["params"]:
            claim(parameter, self, row_gradients=False)

    def allocate(self) -> None:
        """Make the state of every parameter now, not at its first step (for byte counting)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
