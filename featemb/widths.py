"""Widths of the features' tables, chosen within a limit of serving bytes.

Shape letters: F features, n_f ids and w_f columns of feature f, D width of the vectors, h ids that
have one column more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from featemb.codecs.base import Codec
from featemb.errors import BudgetError
from featemb.frequency import hot_start
from featemb.schema import Schema

_NUMBER = 4


@dataclass(frozen=True)
class Widths:
    """What each feature stores.

    Attributes:
        sizes: w_f, columns of each feature's table.
        feature: the feature of which some ids have one column more.
        hot: h, how many of its ids have it; 0 where there is no such feature.
        frequent: whether they are its most frequent ids, or those of the lowest numbers.
    """

    sizes: tuple[int, ...]
    feature: int = 0
    hot: int = 0
    frequent: bool = True

    def groups(self) -> list[tuple[int, list[int]]]:
        """Return the distinct widths, from the largest, with the features of each."""
        return [
            (width, [f for f, size in enumerate(self.sizes) if size == width])
            for width in sorted(set(self.sizes), reverse=True)
        ]


class WidthBytes:
    """Serving bytes of tables of w_f columns with projections to D, by feature.

    A feature takes ``n_f row(w_f) + 4 w_f D`` bytes (and 4 D with a bias), or ``n_f row(D)`` where
    ``w_f = D``: then it needs no projection. Widths that take no fewer bytes than D are D.

    Args:
        schema: the features.
        dim: D.
        codec: format of the rows.
        bias: whether projections have one.
    """

    def __init__(self, schema: Schema, dim: int, codec: Codec, bias: bool = False) -> None:
        self.schema, self.dim, self.codec, self.bias = schema, dim, codec, bias
        self._row: dict[int, int] = {}

    def __call__(self, widths: Sequence[int]) -> int:
        """Return the bytes of all features, without the column of some ids."""
        return sum(self.of(feature, width) for feature, width in enumerate(widths))

    def of(self, feature: int, width: int) -> int:
        """Return the bytes of one feature."""
        rows = self.schema.cardinalities[feature] * self.row(width)
        if width == self.dim:
            return rows
        return rows + _NUMBER * self.dim * (width + self.bias)

    def row(self, width: int) -> int:
        """Return the bytes of a row: codecs are linear in the rows."""
        if width not in self._row:
            coded = self.codec.encode(torch.empty(1, width, device="meta"))
            self._row[width] = sum(one.numel() * one.element_size() for one in coded.buffers())
        return self._row[width]

    def real(self, feature: int, width: int) -> int:
        """Return the width, or D where that takes no more bytes."""
        wide = width >= self.dim or self.of(feature, width) >= self.of(feature, self.dim)
        return self.dim if wide else width

    def of_limit(self, limit: int | None, smallest: int = 1) -> int:
        """Return a limit; None is a tenth of the plain table, or the floor where that is larger."""
        if limit is not None:
            return limit
        floor = self(self.narrowest(smallest))
        return max(floor, self.schema.full_bytes(self.dim) // 10)

    def narrowest(self, smallest: int = 1) -> tuple[int, ...]:
        """Return the widths of the floor."""
        return tuple(self.real(feature, smallest) for feature in range(self.schema.num_features))

    def fit(self, limit: int, order: Iterable[int], name: str, smallest: int = 1) -> Widths:
        """Widen features in an order, a column each time, until a column does not fit.

        The feature whose column does not fit gets it for as many of its most frequent ids as there
        are bytes left: the rest is less than a number of one id, or than the column's projection.

        Args:
            limit: most bytes.
            order: features; each occurrence is one more column.
            name: of the method, for the error.
            smallest: columns that every feature has.

        Raises:
            BudgetError: not even ``smallest`` columns fit.
        """
        widths = list(self.narrowest(smallest))
        left = limit - self(widths)
        if left < 0:
            floor = limit - left
            text = f"{name} at width {self.dim} needs at least {floor:,} bytes"
            raise BudgetError(f"{text}, the limit is {limit:,}", floor)
        for feature in order:
            if widths[feature] == self.dim:
                continue
            wider = self.real(feature, widths[feature] + 1)
            more = self.of(feature, wider) - self.of(feature, widths[feature])
            if more > left:
                return self._column(tuple(widths), feature, left)
            widths[feature], left = wider, left - more
        return Widths(tuple(widths))

    def _column(self, widths: tuple[int, ...], feature: int, left: int) -> Widths:
        """Give some ids of a feature one more column, of at most so many bytes.

        Ids that are not numbered by frequency need a bitmap. Where it would take more than half of
        the bytes left, the ids of the lowest numbers get the column instead.
        """
        one = self.schema.features[feature]
        number, left = self.row(1), left - _NUMBER * self.dim
        ids = self.schema.cardinalities[feature]
        hot = min(left // number, ids)
        if hot < 1:
            return Widths(widths)
        if hot_start(one, hot) is not None:
            return Widths(widths, feature, hot)
        marked = min((left - 12 * -(-ids // 64)) // number, ids - 1)
        if 2 * marked < hot:
            return Widths(widths, feature, hot, frequent=False)
        return Widths(widths, feature, marked)


def by_threshold(num_features: int, dim: int, reached: Callable[[int, int], float]) -> list[int]:
    """Return the order in which features are widened while a rule's setting grows.

    Args:
        num_features: F.
        dim: D.
        reached: (feature, width) -> value of the setting from which on it has that width.
    """
    events = [(reached(f, w), f, w) for f in range(num_features) for w in range(2, dim + 1)]
    return [feature for _, feature, _ in sorted(events)]


def up_to(order: Iterable[int], widest: Sequence[int]) -> list[int]:
    """Leave out of an order what widens a feature beyond a width."""
    widths, kept = [1] * len(widest), []
    for feature in order:
        widths[feature] += 1
        if widths[feature] <= widest[feature]:
            kept.append(feature)
    return kept
