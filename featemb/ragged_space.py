"""`RaggedSpace`: the widths that a search may choose, with the rows that fit beside them.

Shape letters: F features, n_f ids of feature f, N ids in all, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from featemb.evolution import Candidate
from featemb.ids import parse
from featemb.parts.supernet import Supernet
from featemb.ragged import RaggedSize, RowOrder, fit_rows
from featemb.schema import Schema

_NEAR = (-2, -1, 1, 2)
_POWERS = (0.0, 0.15, 0.3, 0.5)
_SHARES = (1.0, 0.7, 0.4, 0.2, 0.1)


class RaggedSpace:
    """Candidates are one width a feature; their rows follow from the limit, or from the scores.

    Args:
        size: serving bytes.
        dim: D.
        limit: serving bytes that are used up and not passed; None: the rows of positive score are
            kept, whatever the widths.
        scores: ``[N]``, the order of the rows.
        rows: whether rows may be pruned.

    Attributes:
        rank: int64 ``[N]``: a row is kept where its rank is below `kept`.
    """

    def __init__(
        self, size: RaggedSize, dim: int, limit: int | None, scores: Tensor, rows: bool
    ) -> None:
        self.size, self.dim, self.limit, self.rows = size, dim, limit, rows
        self.cardinalities = size.cardinalities
        if limit is None and rows:
            self.rank = (scores <= 0).long()
        else:
            self._order = RowOrder(scores, self.cardinalities)
            self.rank = self._order.rank.to(scores.device)

    def kept(self, widths: Candidate) -> int:
        """Return the number of kept rows, as `rank` counts them; 0 where too few would fit."""
        if self.limit is None and self.rows:
            return 1
        if self.limit is None or not self.rows:
            return len(self.rank)
        return fit_rows(self.size, self._order, widths, self.limit)

    def first(self, count: int, seed: int) -> list[Candidate]:
        """Return random widths; within a limit, power laws of cardinality for many rows or few."""
        rng = random.Random(seed)
        features = range(len(self.cardinalities))
        count = max(1, count)
        drawn = [tuple(rng.randint(1, self.dim) for _ in features) for _ in range(count)]
        if self.limit is None:
            return drawn
        shares = _SHARES if self.rows else (1.0,)
        laws = [self._power_law(power, share) for power in _POWERS for share in shares]
        return [*dict.fromkeys(laws), *drawn[: count // 4]]

    def _power_law(self, power: float, share: float) -> Candidate:
        """Return ``k_f ~ n_f^-power`` with the largest factor at which a share of the rows fits."""
        most = max(self.cardinalities)
        kept = [max(1, int(n * share)) for n in self.cardinalities]
        assert self.limit is not None
        widths: Candidate = (1,) * len(self.cardinalities)
        for quarters in range(1, self.dim * 4 + 1):
            law = (quarters / 4 * (most / n) ** power for n in self.cardinalities)
            candidate = tuple(min(self.dim, max(1, int(one))) for one in law)
            if self.size(candidate, kept) > self.limit:
                break
            widths = candidate
        return widths

    def gene(self, rng: random.Random, value: int) -> int:
        """Draw a width: anywhere, or within a limit as often near the old one."""
        if self.limit is not None and rng.random() < 0.5:
            return min(self.dim, max(1, value + rng.choice(_NEAR)))
        return rng.randint(1, self.dim)

    def repair(self, widths: Candidate, rng: random.Random) -> Candidate:
        """Return widths that use up the limit.

        Features are widened in random order as long as all rows fit; a last column, of the smallest
        feature that can have one, then costs the rows of smallest score. Where rows are pruned
        already, or may not be, nothing is widened past the limit.
        """
        if self.limit is None:
            return widths
        made = list(widths)
        while max(made) > 1 and not self._fits(made):
            made[max(range(len(made)), key=made.__getitem__)] -= 1
        if self._overflows(made):
            return tuple(made)
        order = list(range(len(made)))
        rng.shuffle(order)
        for feature in order:
            while made[feature] < self.dim:
                made[feature] += 1
                if self._overflows(made):
                    made[feature] -= 1
                    break
        narrow = [feature for feature in order if made[feature] < self.dim]
        if narrow and self.rows:
            made[min(narrow, key=self.cardinalities.__getitem__)] += 1
        return tuple(made)

    def _fits(self, widths: Sequence[int]) -> bool:
        """Whether a row of each feature fits; all rows, where none may be pruned."""
        return self.kept(tuple(widths)) > 0 if self.rows else not self._overflows(widths)

    def _overflows(self, widths: Sequence[int]) -> bool:
        return self.limit is not None and self.size(widths, self.cardinalities) > self.limit


class RaggedVariants:
    """Candidates over one table, for `featemb.Evaluator`: rows are looked up once a batch.

    Args:
        schema: the features, all single-valued.
        net: gives rows ``[B, F]`` and their vectors ``[B, F, D]``.
        rank: int64 ``[N]``.
        kept: of each candidate: rows whose rank is below it are kept.
        widths: the candidates.
    """

    def __init__(
        self,
        schema: Schema,
        net: Supernet,
        rank: Tensor,
        kept: Sequence[int],
        widths: Sequence[Candidate],
    ) -> None:
        self.widths = widths
        self._schema, self._net, self._rank, self._kept = schema, net, rank, kept
        dim, device = net.rows.get_parameter("weight").shape[1], rank.device
        self._features = [
            torch.tensor([f for f, width in enumerate(one) for _ in range(width)], device=device)
            for one in widths
        ]
        self._columns = [
            torch.tensor([f * dim + i for f, k in enumerate(one) for i in range(k)], device=device)
            for one in widths
        ]

    def vectors(self, ids: Any) -> Iterator[Tensor]:
        """Yield ``[B, sum(widths[v])]`` for every candidate."""
        checked = parse(ids, self._schema)
        assert isinstance(checked, Tensor)
        rows, vectors = self._net.read(checked)
        flat, rank = vectors.flatten(1), self._rank[rows]
        for kept, columns, feature in zip(self._kept, self._columns, self._features, strict=True):
            picked = flat.index_select(1, columns)
            if kept < len(self._rank):
                picked *= (rank < kept).to(flat.dtype).index_select(1, feature)
            yield picked
