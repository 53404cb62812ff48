"""`PrunedEmbedding`: a full table in training, of which the best rows or numbers are served.

Shape letters: N ids of all features, D width, K kept entries (rows or numbers).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from featemb.codecs.base import Codec
from featemb.frozen import FrozenEmbedding
from featemb.layer import BuildContext, MethodConfig
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.parts.base import Part
from featemb.parts.masked import MaskedRows, keep_largest
from featemb.staging import StagedEmbedding

Unit = Literal["rows", "weights"]


class PrunedEmbedding(StagedEmbedding):
    """A full table ``E [N, D]``, of which K rows or K numbers are kept.

    In eval mode, and frozen, exactly K entries of the largest `importance` are kept and all others
    read as zero; they are chosen anew whenever the layer goes into eval mode, until `settled`. In
    training mode the mask applies from then on. The bytes depend on K alone.

    Args:
        context: schema, width, seed, device.
        config: the method's configuration.
        unit: what is kept: "rows" or "weights" (single numbers).
        kept: K; at most all.
        init: rows start uniform in ``[-init, init]``.

    Attributes:
        settled: whether the mask is final; a method says from which stage on.
    """

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        unit: Unit,
        kept: int,
        init: float,
    ) -> None:
        cardinalities = context.schema.cardinalities
        table = context.table(sum(cardinalities), context.dim, init)
        width = 1 if unit == "rows" else context.dim
        keep = torch.zeros(sum(cardinalities), width, dtype=torch.bool, device=context.device)
        masked = MaskedRows(rows=table, keep=keep, kept=min(kept, keep.numel()))
        address = OffsetAddress.of(cardinalities)
        source = Lookup(address=address, rows=masked, combine=Concat())
        super().__init__(context, config, source)

    @property
    def masked(self) -> MaskedRows:
        """The part that holds the table and its mask."""
        part = self.source.get_submodule("rows")
        assert isinstance(part, MaskedRows)
        return part

    @property
    def weight(self) -> Tensor:
        """The table ``[N, D]``."""
        return self.masked.rows.get_parameter("weight")

    @property
    def settled(self) -> bool:
        """Whether the mask is final in the stage at hand."""
        return False

    def importance(self) -> Tensor:
        """Return a score of every entry, ``[N, 1]`` for rows or ``[N, D]`` for numbers."""
        raise NotImplementedError

    def chosen(self) -> Tensor:
        """Return the mask of the K most important entries as they are now."""
        with torch.no_grad():
            return keep_largest(self.importance(), self.masked.kept)

    def settle(self) -> None:
        """Choose the mask that the layer has from now on; for the beginning of a stage."""
        self.masked.keep.copy_(self.chosen())

    def entered(self) -> None:
        """Apply the mask to training too where it is final."""
        self.masked.masks_training = self.settled  # type: ignore[misc]  # hides the default

    def train(self, mode: bool = True) -> PrunedEmbedding:
        """Set the mode; going into eval mode chooses the mask unless it is settled."""
        super().train(mode)
        if not mode and not self.settled:
            self.settle()
        return self

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        masked = self.masked
        keep = self.chosen() if self.training and not self.settled else masked.keep
        address, combine = (self.source.get_submodule(one) for one in ("address", "combine"))
        assert isinstance(address, Part)
        assert isinstance(combine, Part)
        source = Lookup(
            address=address.frozen(codec),
            rows=masked.served(codec.at(address), keep),
            combine=combine.frozen(codec),
        )
        return FrozenEmbedding(self.schema, self.dim, self.widths, source)


def default_kept(entries: int, given: int | None) -> int:
    """Return K: as given, or a tenth of all entries."""
    return max(1, entries // 10) if given is None else given
