"""Rows of one method that another method stores: how methods compose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb.parts.address import OffsetAddress
from featemb.parts.base import Part
from featemb.parts.combine import Concat
from featemb.parts.source import Lookup

if TYPE_CHECKING:
    from featemb.codecs.base import Codec


class StoredRows(nn.Module):
    """Rows that an embedding layer of one feature makes from their numbers; trainable.

    Args:
        layer: a `FeatureEmbedding` whose one feature's ids are the rows.
        width: numbers a row; a narrower layer's vectors are filled up with zeros.
        center: added to every number of the rows from ``first`` on.
        first: see ``center``.
    """

    def __init__(self, layer: nn.Module, width: int, center: float = 0.0, first: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.width, self.center, self.first = width, center, first

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., width]``."""
        flat = rows.reshape(-1)
        vectors = self.layer.lookup(flat, torch.zeros_like(flat))  # type: ignore[operator]
        return _laid_out(vectors, rows, self.width, self.center, self.first)

    def frozen(self, codec: Codec) -> Part:
        """Return the layer's frozen form, as rows."""
        source = self.layer._freeze(codec.inside()).source  # type: ignore[operator]
        full = self.layer.widths == (self.width,) and not self.center
        if full and isinstance(source, Lookup) and isinstance(source.combine, Concat):
            rows = source.rows
            if isinstance(source.address, OffsetAddress) and isinstance(rows, Part):
                return rows
        return SourceRows(source=source, width=self.width, center=self.center, first=self.first)


class SourceRows(Part):
    """Rows that a source of one feature makes from their numbers; frozen.

    Attributes:
        source: (row, feature 0) -> vectors.
        width: numbers a row; narrower vectors are filled up with zeros.
        center: added to every number of the rows from ``first`` on.
        first: see ``center``.
    """

    source: nn.Module
    width: int
    center: float
    first: int

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., width]``."""
        flat = rows.reshape(-1)
        vectors = self.source(flat, torch.zeros_like(flat))
        return _laid_out(vectors, rows, self.width, self.center, self.first)


def _laid_out(vectors: Tensor, rows: Tensor, width: int, center: float, first: int) -> Tensor:
    if vectors.shape[-1] < width:
        vectors = F.pad(vectors, (0, width - vectors.shape[-1]))
    vectors = vectors.view(*rows.shape, width)
    if not center:
        return vectors
    if not first:
        return vectors + center
    return torch.where((rows >= first)[..., None], vectors + center, vectors)
