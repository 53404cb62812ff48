"""ROBE-Z: random offset block embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import default_rows, share
from featemb.parts.robe import RobeBlocks
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Robe(MethodConfig):
    """All vectors are blocks of one circular array M of numbers, at hashed offsets.

    ``e(f, x) = concat_c g o M[p_c : p_c + Z]`` with ``p_c = hash(x; salt_{f,c}) mod |M|``, c = 1 ..
    ceil(D / Z), indices modulo ``|M|``, and signs g = 1 (or hashed, +1 or -1 for every number).
    Desai, Chou and Shrivastava, "Random Offset Block Embedding (ROBE) for Compressed Embedding
    Tables in Deep Learning Recommendation Systems", MLSys 2022 (2108.02191). ``chunk`` is the
    *length* Z of a block, not the number of blocks: ``chunk = dim`` reads one contiguous block an
    id, ``chunk = 1`` is HashedNet (every number hashed by itself).

    Blocks overlap: two ids share some numbers more often than with whole rows, but rarely all.
    Features share the array (feature multiplexing); ``multiplexed = false`` gives each an array of
    its own.

    Deviations: the salt tells features apart, where the original adds an offset to the id; a
    64-bit mixer replaces the universal hash; blocks wrap, where the authors' code stops short of
    the end. The array is stored as rows of Z numbers and a block reads two of them: the gradient
    of a block, and a lazy optimizer's step, touch both rows whole.

    Any non-negative int64 is a valid id of an unbounded feature. An id never seen in training gets
    the block that its hash points at.

    Bytes: ``4 Z blocks + 8``.

    Attributes:
        blocks: ``|M| / Z``; None takes M to a tenth of the full table's numbers.
        chunk: Z; None takes the whole width.
        signs: whether to multiply by hashed signs.
        multiplexed: whether all features share one array.
        power: exponent of the share-out rule of separate arrays (see ``hash``).
        init: numbers start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "robe"
    summary: ClassVar[str] = "blocks of one shared circular array, at hashed offsets"
    paper: ClassVar[str] = "Desai et al., MLSys 2022"
    knob: ClassVar[str] = "blocks"
    unbounded: ClassVar[bool] = True

    blocks: int | None = None
    chunk: int | None = tunable(None, choices=(None, 1, 2, 4, 8))
    signs: bool = tunable(False, choices=(False, True))
    multiplexed: bool = tunable(True, choices=(True, False))
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("chunk", "at least 1", self.chunk is None or self.chunk >= 1)

    def smallest_knob(self, schema: Schema) -> int:
        """One block an array."""
        return 1 if self.multiplexed else schema.num_features

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Make the array."""
        schema = context.schema
        chunk = min(self.chunk or context.dim, context.dim)
        per_id = -(-context.dim // chunk)
        total = default_rows(self, schema, per_id, field="blocks", least=self.smallest_knob(schema))
        sizes = (total,) * schema.num_features
        offsets = (0,) * schema.num_features
        if not self.multiplexed:
            sizes = tuple(abs(size) for size in share(self, schema, total, per_id))
            offsets = tuple(sum(sizes[:f]) for f in range(len(sizes)))
            total = sum(sizes)
        source = RobeBlocks(
            rows=context.rows(total, chunk, self.init),
            offsets=offsets,
            sizes=sizes,
            dim=context.dim,
            chunk=chunk,
            signs=self.signs,
            seed=context.seed_tensor(),
        )
        return PartsEmbedding(context, self, source)
