"""Hash embeddings: several probes an id, combined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import default_rows, hash_blocks, share
from featemb.parts import (
    Concat,
    HashAddress,
    Lookup,
    Mean,
    OffsetAddress,
    Part,
    Source,
    Stack,
    Sum,
    Weighted,
)
from featemb.schema import Schema

COMBINES: dict[str, type[Part]] = {"mean": Mean, "sum": Sum, "concat": Concat}


@register
@dataclass(frozen=True, kw_only=True)
class MultiHash(MethodConfig):
    """k probes into a feature's rows: ``e(f, x) = combine_l E_f[h_{f,l}(x) mod m_f]``.

    Svenstrup et al., "Hash Embeddings for Efficient Word Representations", NeurIPS 2017. Two ids
    have the same vector only if all probes collide. With ``weights`` the probes are summed with
    learned importance weights, ``e = sum_l w_l(x) E_f[...]``, as in the paper; the weight vectors
    are hashed too. ``combine = "concat"`` reads k narrow rows side by side: compositional codes
    without a vocabulary, a hashed product quantisation. ``multiplexed`` lets all features read one
    block (Coleman et al., NeurIPS 2023, compare these forms); with "concat" that is Unified
    Embedding itself.

    Rows are shared out among features as by the method ``hash``; small features stay whole, with
    private rows. An unbounded feature takes any non-negative int64. An id never seen in training
    gets the rows that its hashes share with trained ids.

    Bytes: ``4 C R + 4 k W + 8``; C = D, or D / k with "concat"; R ``rows``, W weight vectors, 8
    for the seed of the hashes (16 with hashed weights).

    Attributes:
        rows: rows of all features together; None takes a tenth of the full table's numbers.
        probes: k.
        combine: "mean", "sum" or "concat"; weights replace it by a weighted sum.
        weights: importance weight vectors, as a multiple of ``rows``; 0 for none. Where they
            reach the number of ids, every id has its own.
        multiplexed: whether all features share one block of rows.
        power: exponent of the share-out rule (see ``hash``).
        init: rows start uniform in ``[-init, init]``; weights at ``1 / k``.
    """

    name: ClassVar[str] = "multi_hash"
    summary: ClassVar[str] = "several hashed rows an id, averaged, weighted or side by side"
    paper: ClassVar[str] = "Svenstrup et al., NeurIPS 2017"
    knob: ClassVar[str] = "rows"
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    probes: int = tunable(2, 1, 4)
    combine: str = tunable("mean", choices=("mean", "sum", "concat"))
    weights: float = tunable(0.0, choices=(0.0, 0.5, 1.0))
    multiplexed: bool = tunable(False, choices=(False, True))
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("probes", "at least 1", self.probes >= 1)
        self.require("combine", f"one of {', '.join(COMBINES)}", self.combine in COMBINES)
        self.require("weights", "at least 0 and finite", 0 <= self.weights < float("inf"))
        if self.combine == "concat":
            self.require("weights", '0 with combine="concat"', self.weights == 0)

    def at_width(self, dim: int) -> MethodConfig:
        """Keep the largest number of probes that divides the width, where they lie side by side."""
        if self.combine != "concat":
            return self
        return replace(self, probes=max(n for n in range(1, self.probes + 1) if dim % n == 0))

    def smallest_knob(self, schema: Schema) -> int:
        """One row a block."""
        return 1 if self.multiplexed else schema.num_features

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Make the blocks, and the weights where they are wanted."""
        width = probe_width(self, context.dim, self.combine, self.probes)
        spread = self.combine == "concat"
        per_id = self.probes if spread else 1
        least = self.smallest_knob(context.schema)
        rows = default_rows(self, context.schema, per_id, least=least)
        if self.multiplexed:
            address, total = shared_block(context, rows, self.probes), rows
        else:
            sizes = share(self, context.schema, rows, per_id)
            address, total = hash_blocks(context, sizes, self.probes, spread)
        table = context.rows(total, width, self.init)
        source: Source
        if weights := round(self.weights * rows):
            vectors = Lookup(address=address, rows=table, combine=Stack())
            source = weighted(context, vectors, weights, self.probes)
        else:
            source = Lookup(address=address, rows=table, combine=COMBINES[self.combine]())
        return PartsEmbedding(context, self, source)


def probe_width(config: MethodConfig, dim: int, combine: str, probes: int) -> int:
    """Return the width of a row that holds one of several probes.

    Raises:
        ConfigError: probes that lie side by side do not divide the width.
    """
    if combine != "concat":
        return dim
    if dim % probes:
        raise ConfigError(f"{config.name}: probes must divide dim, got {dim=}, {probes=}")
    return dim // probes


def shared_block(context: BuildContext, rows: int, lookups: int) -> HashAddress:
    """Return the address of one block of ``rows`` that every feature hashes into."""
    features = context.schema.num_features
    return HashAddress(
        offsets=(0,) * features,
        sizes=(rows,) * features,
        whole=(False,) * features,
        lookups=lookups,
        spread=False,
        seed=context.seed_tensor(),
    )


def weighted(context: BuildContext, vectors: Lookup, count: int, probes: int) -> Source:
    """Return the sum of an id's k vectors by ``count`` weight vectors, its own where they do."""
    schema = context.schema
    address: Part
    if schema.bounded and count >= sum(schema.cardinalities):
        address = OffsetAddress.of(schema.cardinalities)
        count = sum(schema.cardinalities)
    else:
        address = shared_block(context, count, 1)
        # a seed of its own: an id's weights must not collide where its rows do
        address.seed = address.seed + 1
    table = context.table(count, probes, 0.0, center=1 / probes)
    weights = Lookup(address=address, rows=table, combine=Concat())
    return Weighted(vectors=vectors, weights=weights)
