"""Block deduplication: near-identical blocks of rows are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.budget import serving_bytes
from featemb.codecs.base import Codec, check_finite
from featemb.config import register, tunable
from featemb.errors import BudgetError
from featemb.frozen import FrozenEmbedding
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.merging import merge
from featemb.methods.hash import Hash
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.parts.blocks import BlockAddress
from featemb.parts.packed import PackedInts
from featemb.rows import RowTable
from featemb.schema import Schema
from featemb.spec import Spec
from featemb.stage import Stage

_MERGED = "source.address.pointers.words"


@register
@dataclass(frozen=True, kw_only=True)
class Dedup(MethodConfig):
    """The plain table is trained; then near-identical blocks of its rows are stored once.

    ``e(f, x) = E[p(a_f + x div s) s + x mod s]``: a_f is the first block of feature f, s the ids
    of a block, p a stored map of ``ceil(log2 U)`` bits a block onto the U blocks of E ``[U s, D]``.
    Zhou et al., "Serving Deep Learning Models with Deduplication from Relational Databases",
    PVLDB 15(10), 2022 (2201.10442); applied to embedding tables by Zhang et al., "Experimental
    Analysis of Large-scale Learnable Vector Storage Compression", PVLDB 17(4), 2023.

    Stages: ``train``, the full table; ``merge``, which begins by merging blocks until U are left
    (`featemb.merging`) and trains what is left further. Of merged blocks those values stay that
    have the larger training counts. A feature's last block is filled up with rows of zeros, which
    are counted. Until the stage ``merge`` the layer trains and holds the full table; `freeze` then
    merges a copy, so that serving bytes are always those of U blocks.

    Deviations: U is solved from the budget and met exactly, where the paper checks the accuracy
    while merging and others may end above it. Duplicates are found by sorting the keys of an L2 LSH
    in rounds of growing radius, not by inserting blocks one by one; radius and tolerance are in
    units of the weights' standard deviation. Blocks begin anew with every feature, and may be
    merged across features.

    An id never seen in training reads its row of the block that its own was merged into: the values
    of another id where that block is another one.

    Bytes: ``4 D s U + B ceil(log2 U) / 8``, B blocks in all.

    Attributes:
        blocks: U; None takes a tenth of all blocks.
        block: s.
        similarity: 0 merges until U blocks are left. Otherwise the least share of a block's numbers
            that must be within a quarter of the weights' standard deviation of those that take
            their place; a budget that this does not reach is an error at the merge.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "dedup"
    summary: ClassVar[str] = "full table in training; near-identical blocks of rows stored once"
    paper: ClassVar[str] = "Zhou et al., PVLDB 2022"
    own_rows: ClassVar[str] = "merges blocks of its own rows by their values"
    knob: ClassVar[str] = "blocks"

    blocks: int | None = None
    block: int = tunable(4, choices=(1, 2, 4, 8, 16))
    similarity: float = 0.0
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("block", "at least 1", self.block >= 1)
        self.require("similarity", "between 0 and 1", 0 <= self.similarity <= 1)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a map to single numbers is no smaller than they are."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> DedupEmbedding:
        """Make the full table."""
        return DedupEmbedding(context, self)


class DedupEmbedding(PartsEmbedding):
    """A full table until its blocks are merged, and a table of unique blocks from then on."""

    config: Dedup

    def __init__(self, context: BuildContext, config: Dedup) -> None:
        cardinalities = context.schema.cardinalities
        table = context.table(sum(cardinalities), context.dim, config.init)
        super().__init__(context, config, _full(cardinalities, table))

    @property
    def merged(self) -> bool:
        """Whether the blocks have been merged."""
        return isinstance(self.source.get_submodule("address"), BlockAddress)

    def stages(self) -> tuple[Stage, ...]:
        """The full table, then the merged one."""
        return (Stage("train"), Stage("merge"))

    def begin_stage(self, stage: Stage) -> None:
        """Merge the blocks before the second stage."""
        if stage.name == "merge" and not self.merged:
            with torch.no_grad():
                self.source = self._merge(self.codec)

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        source = self.source if self.merged else self._merge(codec)
        frozen = source.frozen(codec)
        assert isinstance(frozen, Lookup)
        return FrozenEmbedding(self.schema, self.dim, self.widths, frozen)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the form, full or merged, that a state dict has."""
        if (prefix + _MERGED in state_dict) != self.merged:
            weight = self.source.get_parameter("rows.weight")
            cardinalities = self.schema.cardinalities
            if self.merged:
                rows = weight.new_empty(sum(cardinalities), self.dim)
                self.source = _full(cardinalities, _table(rows))
            else:
                self.source = self._lookup(self._shape(weight), self._unset(weight.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _merge(self, codec: Codec) -> Lookup:
        """Return the merged form of the full table; on the meta device, its shapes."""
        weight = self.source.get_parameter("rows.weight").detach()
        pointers = self._unset(weight.device)
        if weight.is_meta:
            return self._lookup(self._shape(weight), pointers)
        check_finite(weight)
        blocks = self._blocks(weight)
        kept = min(self._kept(), len(blocks))
        leader = merge(blocks, self._counts().to(weight.device), kept, self.config.similarity)
        leaders, number = torch.unique(leader, return_inverse=True)
        if len(leaders) > kept:
            config = replace(self.config, blocks=len(leaders))
            floor = serving_bytes(Spec(config, codec), self.schema, self.dim)
            raise BudgetError(
                f"dedup: {kept} blocks were asked for, but only with {len(leaders)} all are as "
                f"alike as similarity={self.config.similarity}: {floor:,} bytes",
                floor,
            )
        pointers.write(number, 0)
        return self._lookup(blocks[leaders].view(-1, self.dim), pointers)

    def _blocks(self, weight: Tensor) -> Tensor:
        """Return the table as blocks ``[B, s D]``; zeros fill up each feature's last block."""
        size, firsts = self.config.block, self._firsts()
        blocks = weight.new_zeros(firsts[-1] * size, self.dim)
        row = 0
        for first, n in zip(firsts, self.schema.cardinalities, strict=False):
            blocks[first * size : first * size + n] = weight[row : row + n]
            row += n
        return blocks.view(firsts[-1], -1)

    def _counts(self) -> Tensor:
        """Return the training counts of every block; 0 where they are unknown."""
        size, firsts = self.config.block, self._firsts()
        counts = torch.zeros(firsts[-1] * size, dtype=torch.int64)
        for first, feature in zip(firsts, self.schema.features, strict=False):
            if feature.counts is not None:
                at = first * size
                counts[at : at + len(feature.counts)] = torch.tensor(feature.counts)
        return counts.view(-1, size).sum(1)

    def _firsts(self) -> tuple[int, ...]:
        return _first_blocks(self.schema, self.config.block)

    def _kept(self) -> int:
        """U: blocks that are kept."""
        every = self._firsts()[-1]
        return max(1, every // 10) if self.config.blocks is None else min(self.config.blocks, every)

    def _shape(self, weight: Tensor) -> Tensor:
        return weight.new_empty(self._kept() * self.config.block, self.dim)

    def _unset(self, device: torch.device) -> PackedInts:
        return PackedInts.empty([self._firsts()[-1]], [(self._kept() - 1).bit_length()], device)

    def _lookup(self, rows: Tensor, pointers: PackedInts) -> Lookup:
        address = BlockAddress(
            first=self._firsts()[:-1], block=self.config.block, pointers=pointers
        )
        return Lookup(address=address, rows=_table(rows), combine=Concat())


def _full(cardinalities: Sequence[int], table: RowTable) -> Lookup:
    return Lookup(address=OffsetAddress.of(cardinalities), rows=table, combine=Concat())


def _table(rows: Tensor) -> RowTable:
    with torch.device("meta"):
        table = RowTable(rows.shape[0], rows.shape[1], init=0.0, generator=None)
    table.weight = nn.Parameter(rows)
    return table


def _first_blocks(schema: Schema, size: int) -> tuple[int, ...]:
    """Return the first block of each feature, and the number of all blocks."""
    return (0, *accumulate(-(-n // size) for n in schema.cardinalities))
