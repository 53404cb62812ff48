"""MEmCom: a shared hashed row times one scalar an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash, default_rows, hash_blocks, share
from featemb.parts import Concat, Lookup, OffsetAddress, Plus, Product, Source
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class Memcom(MethodConfig):
    """Multi-embedding compression: ``e(f, x) = U_f[h_f(x) mod m_f] * v_{f,x} (+ w_{f,x})``.

    Pansare et al., "Learning Compressed Embeddings for On-Device Inference", MLSys 2022
    (2203.10135). v and w are one trainable scalar an id, so that every id has a vector of its own;
    ids that share a row differ by scale only (and by offset, with the bias). The scalars set the
    floor: 4 bytes an id, 8 with the bias.

    Deviations: a seeded 64-bit mixer replaces the plain modulo; rows are shared out among features
    as by the method ``hash``. First-order weights are hashed: a scalar an id is a first-order
    weight already, and cannot be compressed by another one.

    An id never seen in training gets the row of its hash, times the initial scalar 1.

    Bytes: ``4 D rows + 4 N + 8``, ``4 N`` more with the bias.

    Attributes:
        rows: rows of all features together; None takes a tenth of the full table's.
        bias: whether ids have an additive scalar too.
        power: exponent of the share-out rule (see ``hash``).
        init: rows start uniform in ``[-init, init]``; v starts at 1 and w at 0.
    """

    name: ClassVar[str] = "memcom"
    summary: ClassVar[str] = "a shared hashed row times one scalar an id"
    paper: ClassVar[str] = "Pansare et al., MLSys 2022"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    bias: bool = tunable(False, choices=(False, True))
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights (see the deviations)."""
        return self if dim > 1 else Hash(power=self.power, init=self.init)

    def smallest_knob(self, schema: Schema) -> int:
        """One row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Make the shared rows and the scalars."""
        schema = context.schema
        rows = default_rows(self, schema)
        address, total = hash_blocks(context, share(self, schema, rows))
        table = context.rows(total, context.dim, self.init)
        shared = Lookup(address=address, rows=table, combine=Concat())
        source: Source = Product(left=shared, right=_scalars(context, center=1.0))
        if self.bias:
            source = Plus(left=source, right=_scalars(context, center=0.0))
        return PartsEmbedding(context, self, source)


def _scalars(context: BuildContext, center: float) -> Lookup:
    cardinalities = context.schema.cardinalities
    return Lookup(
        address=OffsetAddress.of(cardinalities),
        rows=context.table(sum(cardinalities), 1, 0.0, center),
        combine=Concat(),
    )
