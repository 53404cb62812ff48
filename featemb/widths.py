"""Widths of the features' tables, chosen within a limit of serving bytes.

Shape letters: F features, n_f ids and w_f columns of feature f, D width of the vectors, h ids that
have c more columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from featemb.codecs.base import Codec
from featemb.errors import BudgetError
from featemb.frequency import hot_start
from featemb.schema import Schema

_NUMBER = 4
_WORD_BYTES = 12  # of the bitmap, for 64 ids


@dataclass(frozen=True)
class Widths:
    """What each feature stores.

    Attributes:
        sizes: w_f, columns of each feature's table.
        feature: the feature of which some ids have more columns.
        hot: h, how many of its ids have them; 0 where there is no such feature.
        columns: c, how many more: 1, but for codecs whose rows grow in steps.
        frequent: whether they are its most frequent ids, or those of the lowest numbers.
    """

    sizes: tuple[int, ...]
    feature: int = 0
    hot: int = 0
    columns: int = 1
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
    ``w_f = D``: then it needs no projection. Widths that take no fewer bytes than D are D. Features
    of one width share a table, whose bytes some codecs do not add up by rows.

    Args:
        schema: the features.
        dim: D.
        codec: format of the rows.
        bias: whether projections have one.
    """

    def __init__(self, schema: Schema, dim: int, codec: Codec, bias: bool = False) -> None:
        self.schema, self.dim, self.codec, self.bias = schema, dim, codec, bias
        self.cardinalities = schema.cardinalities

    def __call__(self, widths: Sequence[int]) -> int:
        """Return the bytes of all features, without the columns of some ids."""
        rows: Counter[int] = Counter()
        for ids, width in zip(self.cardinalities, widths, strict=True):
            rows[width] += ids
        tables = sum(self.codec.stored_bytes(ids, width) for width, ids in rows.items())
        return tables + sum(map(self._projection, widths))

    def of(self, feature: int, width: int) -> int:
        """Return the bytes of one feature with a table of its own."""
        rows = self.codec.stored_bytes(self.cardinalities[feature], width)
        return rows + self._projection(width)

    def _projection(self, width: int) -> int:
        return 0 if width == self.dim else _NUMBER * self.dim * (width + self.bias)

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
        Where a codec's rows grow by more than a number, the ids get several columns.

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
            width = widths[feature]
            if width == self.dim:
                continue
            widths[feature] = self.real(feature, width + 1)
            if self(widths) > limit:
                widths[feature] = width
                return self._columns(tuple(widths), feature, limit - self(widths))
        return Widths(tuple(widths))

    def _columns(self, widths: tuple[int, ...], feature: int, left: int) -> Widths:
        """Give some ids of a feature as few more columns as take the bytes left.

        Ids that are not numbered by frequency need a bitmap. Where it would take more than half of
        the bytes left, the ids of the lowest numbers get the columns instead.
        """
        ids = self.cardinalities[feature]
        found = Widths(widths)
        for columns in range(1, self.dim - widths[feature] + 1):
            room = left - _NUMBER * self.dim * columns
            hot = self._rows_within(room, columns, ids)
            if hot < 1:
                break
            found = Widths(widths, feature, hot, columns)
            if hot < ids:
                return self._marked(found, room)
        return found

    def _rows_within(self, room: int, width: int, most: int) -> int:
        """Return how many rows of a width, at most so many, take no more bytes than there are."""
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.codec.stored_bytes(middle, width) <= room
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _marked(self, found: Widths, room: int) -> Widths:
        """Leave bytes for the bitmap that tells the most frequent ids, where one is needed."""
        feature, ids = self.schema.features[found.feature], self.cardinalities[found.feature]
        if hot_start(feature, found.hot) is not None:
            return found
        left = room - _WORD_BYTES * -(-ids // 64)
        marked = self._rows_within(left, found.columns, ids - 1)
        if 2 * marked < found.hot:
            return replace(found, frequent=False)
        return replace(found, hot=marked)


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
