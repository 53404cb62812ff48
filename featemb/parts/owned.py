"""`OwnedRows`: K rows that belong to K of many ids; who owns one may change."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.base import Part
from featemb.parts.kept import KeptRows, smallest_index

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

NO_ROW = -1


class OwnedRows(Part):
    """Rows of a table by pointers; an id without a row reads zeros.

    Attributes:
        rows: the table ``[K, C]``.
        pointers: int32 ``[N]`` (int64 beyond 2^31 rows), the row of each id or -1; each row has
            exactly one owner.
    """

    memory_parts: ClassVar[dict[str, str]] = {"pointers": "remap"}
    rows: nn.Module
    pointers: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors ``[..., C]`` of ids numbered over all features.

        In training only ids with a row reach the table: row-wise optimizers must not take row 0
        for read because of the others.
        """
        row = self.pointers[ids].long()
        owns = row >= 0
        if not self.training:
            vectors: Tensor = self.rows(row.clamp(min=0))
            return torch.where(owns[..., None], vectors, torch.zeros_like(vectors))
        places = owns.reshape(-1).nonzero()[:, 0]
        read = self.rows(row.reshape(-1)[places])
        zeros = read.new_zeros(row.numel(), read.shape[-1])
        found: Tensor = zeros.index_copy(0, places, read)
        return found.view(*row.shape, zeros.shape[1])

    def frozen(self, codec: Codec) -> Part:
        """Return the rows in the order of their owners, and the index of these."""
        weight = self.rows.get_parameter("weight").detach()
        total = self.pointers.numel()
        if self.pointers.is_meta:
            owners = torch.empty(weight.shape[0], dtype=torch.int64, device="meta")
        else:
            owners = (self.pointers >= 0).nonzero()[:, 0]
        rows = codec.rows(owners).encode(weight[self.pointers[owners].long()])
        if owners.numel() == total:
            return rows
        return KeptRows(index=smallest_index(owners, total), rows=rows)
