"""Bags of ids in the forms that `nn.EmbeddingBag` takes them.

Shape letters: N ids, B bags, D numbers a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from featemb.errors import SchemaError


class Bags(NamedTuple):
    """Which of N places belong to which bag.

    Attributes:
        places: ``0 .. N - 1``, in the shape of `nn.EmbeddingBag`'s input.
        offsets: int64, where each bag begins; None where each row of the places is one.
        include_last_offset: whether offsets end with N.
    """

    places: Tensor
    offsets: Tensor | None
    include_last_offset: bool

    def pooled(self, vectors: Tensor, mode: str, weights: Tensor | None) -> Tensor:
        """Pool vectors, one a place: ``[B, D]``."""
        return F.embedding_bag(
            self.places,
            vectors,
            self.offsets,
            mode=mode,
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
        )

    def flat(self) -> Bags:
        """Return the same bags with offsets.

        Raises:
            SchemaError: the offsets do not begin with 0, fall, or pass N.
        """
        count = self.places.numel()
        offsets = self.offsets
        if offsets is None:
            step = max(1, self.places.shape[1])
            return Bags(self.places.reshape(-1), torch.arange(0, count, step), False)
        ends = torch.cat((offsets, offsets.new_tensor([count])))
        if int(ends[0]) or bool((ends[1:] < ends[:-1]).any()):
            raise SchemaError(
                f"offsets of bags must begin with 0, never fall, and not pass the number of ids "
                f"{count}"
            )
        return self

    def sizes(self) -> Tensor:
        """Return the number of places of each bag, int64 ``[B]``, of `flat` bags."""
        assert self.offsets is not None
        if self.include_last_offset:
            return self.offsets.diff()
        return torch.cat((self.offsets, self.offsets.new_tensor([len(self.places)]))).diff()
