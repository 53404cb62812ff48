"""Widths by a root of the cardinality: the rule of thumb ``6 V^(1/4)``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash
from featemb.projecting import projected_source
from featemb.widths import WidthBytes, by_threshold, up_to


@register
@dataclass(frozen=True, kw_only=True)
class FieldSize(MethodConfig):
    """Tables whose width grows with a root of the feature's cardinality, projected to width D.

    ``e(f, x) = E_f[x] W_f``, E_f ``[n_f, w_f]``, W_f ``[w_f, D]``, ``w_f = round(c n_f^power)``,
    between 1 and D; no W_f where ``w_f = D``. With ``c = 6`` and ``power = 1/4`` it is the rule of
    thumb of Wang et al., "Deep & Cross Network for Ad Click Predictions", ADKDD 2017
    (1708.05123). Larger features get *wider* rows, the contrary of `MDE`: they carry more
    information, and take even more of the memory.

    The limit is met by c: while it grows, features are widened one column at a time, in the order
    of the rule. One stage; vectors start with the variance of plain rows. An id never seen in
    training has the vector of its first values, projected by a W_f that others have trained.

    Deviations: vectors are projected to one width, where the paper lays them side by side as wide
    as they are. The first column that does not fit is given to the feature's most frequent ids
    alone, so that a limit is met to the number; see `featemb.widths`. Where a projection costs
    more than it saves, the width is D.

    Bytes: ``4 sum_f (n_f w_f + [w_f < D] w_f D)``, and 4 (h + D) for the column of h ids.

    Attributes:
        limit: most serving bytes; None is a tenth of the plain table's, or none where
            ``coefficient`` is given.
        coefficient: largest c; None is the one that meets the limit.
        power: exponent of the rule.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "field_size"
    summary: ClassVar[str] = "width of a feature by the fourth root of its cardinality, projected"
    paper: ClassVar[str] = "Wang et al., ADKDD 2017"
    axis: ClassVar[Axis] = "shape"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    coefficient: float | None = None
    power: float = tunable(0.25, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the coefficient."""
        super().__post_init__()
        good = self.coefficient is None or 0 < self.coefficient < math.inf
        self.require("coefficient", "finite and above 0", good)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a row of one number cannot be narrower."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Choose the widths and make the tables."""
        schema, dim = context.schema, context.dim
        size = WidthBytes(schema, dim, context.codec)
        root = [n**self.power for n in schema.cardinalities]
        order = by_threshold(len(root), dim, lambda f, w: (w - 0.5) / root[f])
        limit = size.of_limit(self.limit)
        if self.coefficient is not None:
            most = [int(self.coefficient * one + 0.5) for one in root]
            order = up_to(order, most)
            limit = schema.full_bytes(dim) if self.limit is None else limit
        widths = size.fit(limit, order, self.name)
        return PartsEmbedding(context, self, projected_source(context, widths, self.init))
