"""`MaskedRows`: a table of which only some rows, or some numbers, are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featemb.errors import DataError
from featemb.parts.base import Part
from featemb.parts.kept import KeptRows, KeptWeights, smallest_index

if TYPE_CHECKING:
    from featemb.codecs.base import Codec


class MaskedRows(Part):
    """Rows of a table whose pruned rows or numbers read as zero; served in a sparse form.

    Attributes:
        rows: the table ``[R, C]``.
        keep: bool ``[R, 1]`` (whole rows) or ``[R, C]`` (single numbers).
        kept: number of true entries, known before the mask is.
        masks_training: whether pruned entries are zero in training mode too; set by the layer.
    """

    memory_parts: ClassVar[dict[str, str]] = {"keep": "masks"}
    rows: nn.Module
    keep: Tensor
    kept: int
    masks_training: ClassVar[bool] = False

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        vectors: Tensor = self.rows(rows)
        if self.training and not self.masks_training:
            return vectors
        return torch.where(self.keep[rows], vectors, torch.zeros_like(vectors))

    def frozen(self, codec: Codec) -> Part:
        """Return the kept entries and the index of the others, by the fewest bytes."""
        return self.served(codec, self.keep)

    def served(self, codec: Codec, keep: Tensor) -> Part:
        """Return what `frozen` does, for another mask of as many kept entries."""
        weight = self.values()
        if self.kept == keep.numel():
            return codec.encode(weight)
        places = self._places(keep)
        index = smallest_index(places, keep.numel())
        sparse: Part
        if keep.shape[1] == 1:
            sparse = KeptRows(index=index, rows=codec.rows(places).encode(weight[places]))
        else:
            single = codec.rows(places // weight.shape[1])
            values = single.encode(weight.reshape(-1)[places][:, None])
            sparse = KeptWeights(index=index, values=values, width=weight.shape[1])
        if _bytes(sparse) <= _bytes(codec.encode(torch.empty_like(weight, device="meta"))):
            return sparse
        return codec.encode(torch.where(keep, weight, torch.zeros_like(weight)))

    def values(self) -> Tensor:
        """Return the numbers that are served where they are kept, ``[R, C]``."""
        return self.rows.get_parameter("weight").detach()

    def _places(self, keep: Tensor) -> Tensor:
        """Return the kept entries' numbers, ascending int64 ``[kept]``."""
        if keep.is_meta:
            return torch.empty(self.kept, dtype=torch.int64, device="meta")
        return keep.reshape(-1).nonzero()[:, 0]


def _bytes(part: Part) -> int:
    return sum(one.numel() * one.element_size() for one in part.buffers())


def keep_largest(scores: Tensor, count: int, prefer: Tensor | None = None) -> Tensor:
    """Return the mask, of the scores' shape, of the ``count`` largest.

    Of equal ones those are taken for which ``prefer``, of as many numbers, is largest; then the
    first.

    Raises:
        DataError: a score is NaN.
    """
    if scores.is_meta:
        return torch.empty_like(scores, dtype=torch.bool)
    flat = scores.reshape(-1)
    if torch.isnan(flat).any():
        raise DataError(f"entry {int(torch.isnan(flat).nonzero()[0])} has no score: it is NaN")
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    cut = flat.kthvalue(flat.numel() - count + 1).values if count else flat.new_tensor(float("inf"))
    keep = flat > cut
    ties = (flat == cut).nonzero()[:, 0]
    if prefer is not None:
        ties = ties[prefer.reshape(-1)[ties].argsort(descending=True, stable=True)]
    keep[ties[: count - int(keep.sum())]] = True
    return keep.view_as(scores)
