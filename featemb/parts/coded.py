"""Rows of which each part is a codeword that a stored code names."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.base import Part
from featemb.rows import gather_rows


class CodedAddress(Part):
    """M rows an id: a codeword for each part of its vector, or rows of its own.

    Row m of id x is ``offset[f] + m size[f] + code(x M + m)``. A whole feature, of size 0, has no
    codes, and private rows ``offset[f] + x M + m``.

    Attributes:
        offsets: first row of each feature.
        sizes: codewords a part of each feature, or 0.
        parts: M.
        codes: part (index, feature) -> code.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    parts: int
    codes: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., M]``."""
        constants = torch.tensor([self.offsets, self.sizes], device=ids.device)
        offset, size = constants[:, feature][..., None]
        part = torch.arange(self.parts, device=ids.device)
        own = ids[..., None] * self.parts + part
        coded = size > 0
        code = self.codes(torch.where(coded, own, 0), feature[..., None])
        rows: Tensor = offset + torch.where(coded, part * size + code, own)
        return rows


class CodewordRows(Part):
    """Trained codewords, and rows of features that have none; ``[...]`` rows give ``[..., C]``.

    Attributes:
        weight: ``[R, C]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "codebooks"}
    weight: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows."""
        return gather_rows(self.weight, rows.reshape(-1)).view(*rows.shape, self.weight.shape[1])
