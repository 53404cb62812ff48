"""Widths by the principal components of a trained table: field dimension optimisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from featemb.config import register, tunable
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.methods.hash import Hash
from featemb.narrowing import NarrowedEmbedding
from featemb.parts import Concat, Lookup, OffsetAddress, Source
from featemb.projecting import write_feature
from featemb.stage import Stage
from featemb.widths import WidthBytes, Widths, by_threshold, up_to

_CHUNK = 1 << 20


@register
@dataclass(frozen=True, kw_only=True)
class PCA(MethodConfig):
    """A full table is trained; each feature then gets as many columns as its components need.

    ``e(f, x) = E_f[x] W_f``, E_f ``[n_f, w_f]``, W_f ``[w_f, D]`` without a bias, none where
    ``w_f = D``. w_f is the smallest number of principal components of the trained table ``T_f
    [n_f, D]`` that hold a share s of its variance, the same share in every feature: the field
    dimension optimisation of GDCN (Wang et al., "Towards Deeper, Lighter and Interpretable Cross
    Network for CTR Prediction", CIKM 2023, 2311.04635).

    The limit is met by s: while it grows, features are widened one column at a time. The components
    are those of the second moments ``sum_x c_x t_x t_x^T / sum_x c_x``, c_x the training counts, or
    1 where the feature has none. They are not centred: without a bias nothing would put the mean
    back.

    Stages: ``train``, the full table; ``dimensions``, a search that needs no evaluation;
    ``retrain``, narrow tables and the rewound model, from new initial values, or with
    ``start=components`` on from the trained model, E_f the scores and W_f the components. Before
    ``dimensions`` the layer answers with its full table; `freeze` then projects a copy, with one
    width for all features, since a plan must know its size. Between ``dimensions`` and ``retrain``
    it uses the widths found.

    An id never seen in training has the vector of its first values, projected by a W_f that others
    have trained; with ``start=components``, its first row of T_f projected onto the components.

    Deviations: the paper sets the share by hand; the second moments are its variances but for the
    mean, and weighted. The first column that does not fit is given to the feature's most frequent
    ids alone, so that a limit is met to the number; see `featemb.widths`. Where a projection costs
    more than it saves, the width is D.

    Bytes: ``4 sum_f (n_f w_f + [w_f < D] w_f D)``, and 4 (h + D) for the column of h ids; in
    training ``4 N D`` in the first stage.

    Attributes:
        limit: most serving bytes; None is a tenth of the plain table's.
        share: largest s (the paper's are 0.80 to 0.95): the result may be smaller than the limit;
            None is the one that meets it.
        start: "initial" or "components", see above.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "pca"
    summary: ClassVar[str] = "full table trained first; widths by its principal components"
    paper: ClassVar[str] = "Wang et al., CIKM 2023"
    axis: ClassVar[Axis] = "shape"
    own_rows: ClassVar[str] = "replaces its table by components of it"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    share: float | None = None
    start: str = tunable("initial", choices=("initial", "components"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the share and the start."""
        super().__post_init__()
        self.require("share", "above 0, at most 1", self.share is None or 0 < self.share <= 1)
        known = self.start in ("initial", "components")
        self.require("start", "'initial' or 'components'", known)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: a row of one number has no components."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> PCAEmbedding:
        """Make the full table."""
        return PCAEmbedding(context, self)


class PCAEmbedding(NarrowedEmbedding):
    """A full table until its dimensions are found, and narrow tables after."""

    config: PCA

    def __init__(self, context: BuildContext, config: PCA) -> None:
        inherits = config.start == "components"
        wide = _full(context, config.init)
        super().__init__(context, config, wide, init=config.init, bias=False, inherits=inherits)
        self.size = WidthBytes(context.schema, context.dim, context.codec)
        self.limit = self.size.of_limit(config.limit)
        self.planned()  # an impossible limit is refused here

    def wide(self, context: BuildContext) -> Source:
        """Make the full table."""
        return _full(context, self.config.init)

    def stages(self) -> tuple[Stage, ...]:
        """The full table, its dimensions, the narrow tables."""
        rewinds = self.config.start == "initial"
        return (
            Stage("train"),
            Stage("dimensions", kind="search"),
            Stage("retrain", weights="initial" if rewinds else "keep"),
        )

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Find the widths; no evaluation is needed."""
        self.choose_widths()

    def planned(self) -> Widths:
        """One width for all features, the smaller ones first."""
        sizes = self.schema.cardinalities
        order = by_threshold(len(sizes), self.dim, lambda f, w: w + sizes[f] / (1 + max(sizes)))
        return self.size.fit(self.limit, order, self.config.name)

    def choose(self) -> Widths:
        """Widen features while the share of variance that all of them hold grows."""
        before = []  # the share that a feature's first w - 1 components hold
        for feature in range(self.schema.num_features):
            variance = self._components(feature)[0]
            total = float(variance.sum()) or 1.0
            before.append([0.0, 0.0, *(variance.cumsum(0) / total).tolist()])
        features = len(before)
        order = by_threshold(features, self.dim, lambda f, w: before[f][w])
        if self.config.share is not None:
            needed = [int(np.searchsorted(held[2:], self.config.share)) + 1 for held in before]
            order = up_to(order, needed)
        return self.size.fit(self.limit, order, self.config.name)

    def inherit(self, narrow: Source, widths: Widths) -> None:
        """Write the scores and the components."""
        for feature in range(self.schema.num_features):
            rows = self._rows(feature)
            components = self._components(feature)[1]
            write_feature(narrow, widths, feature, rows @ components.t(), components)

    def _rows(self, feature: int) -> Tensor:
        """Return the trained table of a feature, ``[n_f, D]``."""
        sizes = list(self.schema.cardinalities)
        return torch.split(self.source.get_parameter("rows.weight").detach(), sizes)[feature]

    def _components(self, feature: int) -> tuple[Tensor, Tensor]:
        """Return the variances ``[D]`` in falling order, and the components ``[D, D]`` in rows."""
        rows = self._rows(feature)
        counts = self.schema.features[feature].counts
        if counts is None or not counts.any():
            weight = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        else:
            weight = torch.tensor(counts, dtype=torch.float64, device=rows.device)
        moments = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=rows.device)
        for at in range(0, len(rows), _CHUNK):
            part = rows[at : at + _CHUNK].double()
            moments += part.t() @ (part * weight[at : at + _CHUNK, None])
        variance, components = torch.linalg.eigh(moments / weight.sum())
        return variance.flip(0).clamp(min=0), components.t().flip(0).to(rows.dtype)


def _full(context: BuildContext, init: float) -> Lookup:
    sizes = context.schema.cardinalities
    table = context.table(sum(sizes), context.dim, init)
    return Lookup(address=OffsetAddress.of(sizes), rows=table, combine=Concat())
