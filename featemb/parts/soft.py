"""`SoftRows`: rows whose numbers are shrunk by learned thresholds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featemb.parts.masked import MaskedRows


class SoftRows(MaskedRows):
    """``sign(v) relu(|v| - sigmoid(s))`` while s is learned, masked rows from then on.

    In training all numbers are read through their thresholds. In eval mode the kept ones are, and
    the others are zero. Where ``masks_training`` the thresholds no longer count.

    Attributes:
        thresholds: the table of s, ``[R, C]``, ``[R, 1]``, ``[1, C]`` or ``[1, 1]``.
        by_row: whether each row has thresholds of its own.
    """

    thresholds: nn.Module
    by_row: bool

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        if self.masks_training:
            return super().forward(rows)
        logits = self.thresholds(rows if self.by_row else torch.zeros_like(rows))
        vectors = self.rows(rows)
        if self.training:
            return shrink(vectors, torch.sigmoid(logits))
        soft = shrink(vectors, _exact_sigmoid(logits))
        return torch.where(self.keep[rows], soft, torch.zeros_like(soft))

    def margins(self) -> Tensor:
        """Return ``|v| - sigmoid(s)`` of the whole table, ``[R, C]``."""
        return super().values().abs() - _exact_sigmoid(self._logits())

    def values(self) -> Tensor:
        """Return the table, through the thresholds while they count."""
        weight = super().values()
        if self.masks_training:
            return weight
        return shrink(weight, _exact_sigmoid(self._logits()))

    def _logits(self) -> Tensor:
        return self.thresholds.get_parameter("weight").detach()


def shrink(values: Tensor, threshold: Tensor) -> Tensor:
    """Return ``sign(v) relu(|v| - t)``, elementwise."""
    return torch.sign(values) * torch.relu(values.abs() - threshold)


def _exact_sigmoid(logits: Tensor) -> Tensor:
    """The sigmoid by way of float64: the same bits wherever a number lies in a tensor."""
    return torch.sigmoid(logits.double()).to(logits.dtype)
