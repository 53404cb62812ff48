"""Mixed dimension embeddings: the larger a feature, the narrower its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash
from featemb.projecting import projected_source
from featemb.schema import Schema
from featemb.widths import WidthBytes, Widths, by_threshold


@register
@dataclass(frozen=True, kw_only=True)
class MDE(MethodConfig):
    """Narrow tables for unpopular features, each with a projection to the common width.

    ``e(f, x) = E_f[x] W_f``, E_f ``[n_f, w_f]``, W_f ``[w_f, D]`` without a bias, and no W_f where
    ``w_f = D``. Widths follow the power rule ``w_f = round(D (p_f / p_max)^alpha)``, between 1 and
    D, with the popularity ``p_f = 1 / n_f`` of a row of the feature, or ``q_f / n_f`` by training
    counts, q_f their sum. Ginart et al., "Mixed Dimension Embeddings with Application to
    Memory-Efficient Recommendation Systems", ISIT 2021 (1909.11810).

    The limit is met by alpha: while it falls from infinity to 0, features are widened one column at
    a time, in the order of the rule. An alpha of one's own gives the paper's widths, and the size
    that follows; with a limit too, its base width (D above) is what meets it.

    One stage. Vectors start with the variance of plain rows: E_f uniform in ``[-init, init]``, W_f
    in ``+-sqrt(3 / w_f)``. An id never seen in training has the vector of its first values,
    projected by a W_f that others have trained.

    Deviations: the first column that does not fit is given to the feature's most frequent ids
    alone (popularity inside a feature, which the paper describes), so that a limit is met to the
    number; see `featemb.widths`. Where a projection costs more than it saves, as in features of few
    ids, the width is D. With ``rounding`` one feature may be between two powers.

    Bytes: ``4 sum_f (n_f w_f + [w_f < D] w_f D)``, and 4 (h + D) for the column of h ids.

    Attributes:
        limit: most serving bytes; None is a tenth of the plain table's.
        alpha: exponent of the rule; None is the one that meets the limit.
        rounding: whether widths are rounded to powers of two.
        popularity: "cardinality", or "counts" for the training counts of features of many values
            (a feature without them counts as the average one).
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "mde"
    summary: ClassVar[str] = "narrower rows for larger features, projected to the common width"
    paper: ClassVar[str] = "Ginart et al., ISIT 2021"
    axis: ClassVar[Axis] = "shape"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    alpha: float | None = None
    rounding: bool = tunable(False, choices=(False, True))
    popularity: str = tunable("cardinality", choices=("cardinality", "counts"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the exponent and the popularity."""
        super().__post_init__()
        good = self.alpha is None or 0 <= self.alpha < math.inf
        self.require("alpha", "finite and at least 0", good)
        known = self.popularity in ("cardinality", "counts")
        self.require("popularity", "'cardinality' or 'counts'", known)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a row of one number cannot be narrower."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Choose the widths and make the tables."""
        source = projected_source(context, self.chosen(context), self.init)
        return PartsEmbedding(context, self, source)

    def chosen(self, context: BuildContext) -> Widths:
        """Return the widths for the limit or the exponent."""
        size, dim = WidthBytes(context.schema, context.dim, context.codec), context.dim
        rarity = self.rarity(context.schema)
        if self.alpha is None:
            # the larger alpha at which a feature has a width, the earlier it gets it
            order = by_threshold(len(rarity), dim, lambda f, w: -self._alpha(rarity[f], w, dim))
            return size.fit(size.of_limit(self.limit), order, self.name)
        scale = [rare**self.alpha for rare in rarity]
        order = by_threshold(len(scale), dim, lambda f, w: self._from(w, dim) * scale[f])
        if self.limit is not None:
            return size.fit(self.limit, order, self.name)
        sizes = [sum(self._from(w, dim) * s <= dim for w in range(2, dim + 1)) + 1 for s in scale]
        return Widths(tuple(size.real(f, width) for f, width in enumerate(sizes)))

    def rarity(self, schema: Schema) -> list[float]:
        """Return ``p_max / p_f``: 1 for the most popular feature, larger for all others."""
        queries = [1.0] * schema.num_features
        if self.popularity == "counts":
            sums = [0 if f.counts is None else int(f.counts.sum()) for f in schema.features]
            known = [one for one in sums if one]
            average = sum(known) / len(known) if known else 1.0
            queries = [float(one or average) for one in sums]
        rows = [n / q for n, q in zip(schema.cardinalities, queries, strict=True)]
        return [one / min(rows) for one in rows]

    def _from(self, width: int, dim: int) -> float:
        """Return the number from which on it is rounded to a width."""
        if not self.rounding:
            return width - 0.5
        return min(2 ** (math.ceil(math.log2(width)) - 0.5), dim - 0.5)

    def _alpha(self, rarity: float, width: int, dim: int) -> float:
        """Return the largest alpha at which a feature has a width."""
        if rarity == 1:
            return math.inf
        return math.log(dim / self._from(width, dim)) / math.log(rarity)
