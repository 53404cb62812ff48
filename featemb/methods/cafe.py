"""CAFE: private rows for the ids that a sketch finds to matter, hashed rows for the others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.layer import BuildContext, FeatureEmbedding, MethodConfig, RowEmbedding
from featemb.methods.hash import Hash, share_rows
from featemb.parts import Concat, Lookup, Mean
from featemb.parts.sketch import COLD, SLOTS, SketchAddress
from featemb.rows import RowTable
from featemb.schema import Schema
from featemb.sketch import HotSketch, Lookups
from featemb.watching import Watching

_INT32 = 2**31
_TINY = 1e-30
_SCORES = ("gradient", "frequency")
_UNKNOWN_RATIO = 0.01  # rows / ids, where the number of ids is unknown


@register
@dataclass(frozen=True, kw_only=True)
class Cafe(MethodConfig):
    """Hot ids own a row, found in training by a sketch; cold ids hash: CAFE.

    Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale
    Recommendation Models", SIGMOD 2024 (2312.03256). With p(f, x) the pointer that the sketch
    holds for an id, ``e(f, x) = E[p]`` if ``p >= 0`` (hot), else ``E[o_f + h_f(x) mod m_f]``
    (cold), E of shape ``[rows, D]`` = H hot rows and one block a feature. ``levels=3`` is CAFE-ML:
    *medium* ids, with a fifth of the hot threshold, read the mean of two hashed rows of a block
    that all features share.

    **The sketch** has H buckets of 4 slots (key, score, pointer). Each training step adds to an
    id's slot its score: the norms of the loss's gradients with respect to e(f, x), summed over the
    step's lookups, in units of their mean over all lookups of the step. An id without a slot takes
    the smallest slot of its bucket that is not hot, and goes on from that slot's score
    (SpaceSaving). An id whose score reaches ``threshold`` gets a hot row while there are any; the
    row starts as what the id read until then, optimizer state included. Whenever the lookups
    counted pass ``10 H threshold``, all scores are multiplied by ``decay``, and ids that fall
    below the threshold lose their rows; nothing is copied back.

    **The split**: ``hot_share`` of the bytes go to hot rows and sketch. The features share the
    other rows by the rule of `Hash`; a feature whose ids all get rows is whole and stays out of
    the sketch. With r = rows / ids, the defaults follow the authors' tuning:
    ``hot_share = 1 - min(0.7, max(0.1, 0.5 (10 r)^0.2))`` and
    ``threshold = min(500, max(10, 20 (10 r)^-0.7))``; r = 0.01 where a feature is unbounded.

    An id never seen in training is cold: it gets the row that its hash shares with trained ids,
    in a whole feature its own row as initialised.

    Bytes: ``4 D rows + 32 H + 8``, 8 for the seed; ``48 H`` where keys are int64: with unbounded
    features or at least 2^31 ids.

    Deviations: the hash is a seeded mixer; the sketch is updated a step at a time, after it, so
    that of the new ids of a bucket only the best 4 of a step can enter; all compressed features
    share one sketch and its hot rows; lookups of whole features in bags count for the time of a
    decay.

    Attributes:
        rows: rows of the table, hot ones included; None takes a tenth of the full table's.
        levels: 2, or 3 for a medium level between hot and cold.
        hot_share: part of the bytes for hot rows and sketch; None: see above.
        medium_share: part of the rows that are not hot for the medium block, at ``levels=3``.
        power: exponent of the rule by which features share the cold rows (see `Hash`).
        score: "gradient", or "frequency" to count every lookup as 1.
        threshold: score from which an id is hot, in lookups of mean gradient; None: see above.
        decay: factor of all scores at a decay.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "cafe"
    summary: ClassVar[str] = "sketch finds hot ids in training and gives them rows; others hash"
    paper: ClassVar[str] = "Zhang et al., SIGMOD 2024"
    own_rows: ClassVar[str] = "moves rows between ids while it trains"
    knob: ClassVar[str] = "rows"
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    levels: int = tunable(2, choices=(2, 3))
    hot_share: float | None = tunable(None, choices=(None, 0.3, 0.5, 0.7, 0.9))
    medium_share: float = tunable(0.25, 0.1, 0.9)
    power: float = tunable(0.5, 0.0, 1.0)
    score: str = tunable("gradient", choices=("gradient", "frequency"))
    threshold: float | None = tunable(None, choices=(None, 10.0, 20.0, 100.0, 500.0))
    decay: float = tunable(0.99, 0.9, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("levels", "2 or 3", self.levels in (2, 3))
        inside = self.hot_share is None or 0 < self.hot_share < 1
        self.require("hot_share", "between 0 and 1, both excluded", inside)
        self.require("medium_share", "between 0 and 1, both excluded", 0 < self.medium_share < 1)
        self.require("score", f"one of {', '.join(_SCORES)}", self.score in _SCORES)
        positive = self.threshold is None or 0 < self.threshold < float("inf")
        self.require("threshold", "finite and above 0", positive)
        self.require("decay", "above 0 and at most 1", 0 < self.decay <= 1)

    def at_width(self, dim: int) -> MethodConfig:
        """Return hashing of as many rows where a bucket (32 bytes) is larger than a row."""
        return self if dim >= 2 * SLOTS else Hash(rows=self.rows, power=self.power, init=self.init)

    def smallest_knob(self, schema: Schema) -> int:
        """One row a feature, one hot row and, with three levels, one medium row."""
        return schema.num_features + self.levels - 1

    def build(self, context: BuildContext) -> FeatureEmbedding:
        """Split the rows and make table, address and sketch."""
        schema, device = context.schema, context.device
        rows = self._rows(schema)
        ids = sum(schema.cardinalities) if schema.bounded else None
        kind = torch.int32 if ids is not None and ids < _INT32 else torch.int64
        hot, medium = self._split(schema, context.dim, rows, 4 + kind.itemsize)
        sizes, whole = self._blocks(schema, rows - hot - medium)
        ends = tuple(accumulate(sizes, initial=hot))
        first_ids = accumulate((f.cardinality or 0 for f in schema.features[:-1]), initial=0)
        address = SketchAddress(
            offsets=ends[:-1],
            sizes=sizes,
            whole=whole,
            first_ids=tuple(first_ids) if kind == torch.int32 else (),
            medium_offset=ends[-1],
            medium_size=medium,
            seed=context.seed_tensor(),
            keys=torch.full((hot, SLOTS), -1, dtype=kind, device=device),
            pointers=torch.full((hot, SLOTS), COLD, dtype=torch.int32, device=device),
        )
        threshold = self._threshold(schema, rows)
        sketch = HotSketch(
            hot, hot, threshold, threshold / 5 if medium else None, self.decay, device
        )
        table = context.table(ends[-1] + medium, context.dim, self.init)
        return CafeEmbedding(context, self, address, table, sketch)

    def _rows(self, schema: Schema) -> int:
        smallest = self.smallest_knob(schema)
        if self.rows is None:
            if not schema.bounded:
                raise ConfigError("cafe: a schema with unbounded features needs rows or a budget")
            return max(-(-sum(schema.cardinalities) // 10), smallest)
        self.require("rows", f"at least {smallest} for this schema", self.rows >= smallest)
        return self.rows

    def _split(self, schema: Schema, dim: int, rows: int, slot_bytes: int) -> tuple[int, int]:
        """Hot rows and medium rows; each feature is left at least one row."""
        share = self.hot_share
        if share is None:
            share = 1 - min(0.7, max(0.1, 0.5 * (10 * _ratio(schema, rows)) ** 0.2))
        row, bucket = 4 * dim, SLOTS * slot_bytes
        hot_rows = share * row / (row + bucket)  # a hot row brings a bucket with it
        hot = int(rows * hot_rows / (hot_rows + 1 - share))
        medium = self.levels == 3
        most = sum(schema.cardinalities) if schema.bounded else rows
        hot = max(1, min(hot, rows - schema.num_features - medium, most))
        self.require("rows", "such that there are below 2^31 hot rows", hot < _INT32)
        if not medium:
            return hot, 0
        left = rows - hot - schema.num_features
        return hot, max(1, min(int((rows - hot) * self.medium_share), left, most))

    def _blocks(self, schema: Schema, rows: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Rows of each feature, and whether it is whole; unbounded ones count as the largest."""
        known = [feature.cardinality for feature in schema.features]
        endless = max(rows + 1, *(n or 0 for n in known))
        sizes = share_rows([n or endless for n in known], rows, self.power)
        return sizes, tuple(size == n for size, n in zip(sizes, known, strict=True))

    def _threshold(self, schema: Schema, rows: int) -> float:
        if self.threshold is not None:
            return self.threshold
        usual: float = 20 * (10 * _ratio(schema, rows)) ** -0.7
        return min(500.0, max(10.0, usual))


def _ratio(schema: Schema, rows: int) -> float:
    return rows / sum(schema.cardinalities) if schema.bounded else _UNKNOWN_RATIO


class CafeEmbedding(RowEmbedding, Watching):
    """A row embedding that watches the gradients of its answers (see `Cafe`).

    The sketch learns in ``after_step``: in a loop that does not call it, no id becomes hot. Only
    lookups in training mode through which a gradient came back are counted.

    Attributes:
        sketch: scores and free rows.
    """

    def __init__(
        self,
        context: BuildContext,
        config: Cafe,
        address: SketchAddress,
        table: RowTable,
        sketch: HotSketch,
    ) -> None:
        combine = Mean() if address.medium_size else Concat()
        super().__init__(context, config, address=address, rows=table, combine=combine)
        self.sketch = sketch
        self._by_gradient = config.score == "gradient"
        # a tensor of the features that the sketch serves would be a buffer; this list is short
        self._watched = [f for f, whole in enumerate(address.whole) if not whole]

    @property
    def _watches(self) -> bool:
        return bool(self._watched)

    def after_step(self, step: int) -> None:
        """Count the lookups of the step, and move ids between the levels."""
        seen = self._recall()
        if not seen:
            return
        ids, feature, norms = seen
        source = self.source
        assert isinstance(source, Lookup)
        address, table = source.address, source.rows
        assert isinstance(address, SketchAddress)
        assert isinstance(table, RowTable)
        counted = norms >= 0
        mean = norms.clamp(min=0).sum() / counted.sum().clamp(min=1)
        scores = torch.where(counted, norms / mean.clamp(min=_TINY), norms)
        self.sketch.update(address, table.weight, Lookups(ids, feature, scores))

    def _noted(self, ids: Tensor, feature: Tensor | None, grad: Tensor) -> Lookups:
        """Return the ids of a lookup and the norms of their gradients ``[..., D]``."""
        norms = grad.detach().norm(dim=-1).to(self.sketch.scores.dtype)
        watched = torch.tensor(self._watched, device=ids.device)
        if feature is None:  # [B, F]
            ids, norms, feature = ids[:, watched], norms[:, watched], watched
        else:
            served = torch.zeros(self.schema.num_features, dtype=torch.bool, device=ids.device)
            served[watched] = True
            norms = torch.where(served[feature], norms, -1.0)
        if not self._by_gradient:
            norms = torch.where(norms < 0, norms, 1.0)
        # a step that gradient scaling skips has gradients that are not finite
        norms = norms.nan_to_num(0.0, 0.0, 0.0)
        feature = feature.expand_as(ids)
        return Lookups(ids.reshape(-1), feature.reshape(-1), norms.reshape(-1))
