"""Which ids are frequent: by the training counts, or by their number where there are none.

Features without counts are taken to be numbered by frequency, id 0 the most frequent, as the
project's data sets are; their counts are taken to follow Zipf's law, ``1 / (id + 1)``, each feature
occurring as often as every other. Unbounded features without counts have no frequent ids.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featemb.schema import Feature, Schema

Ids = npt.NDArray[np.int64]
_GAMMA = 0.5772156649015329


def hot_sizes(schema: Schema, total: int) -> tuple[int, ...]:
    """Return how many ids of each feature are among the ``total`` most frequent of all.

    Equal counts are taken in the order of features and ids. Without counts the expected counts of
    the module's text decide.
    """
    total = min(total, sum(feature.cardinality or 0 for feature in schema.features))
    if all(f.counts is not None or f.cardinality is None for f in schema.features):
        return _by_counts(schema.features, total)
    return _by_zipf(schema.features, total)


def _by_counts(features: Sequence[Feature], total: int) -> tuple[int, ...]:
    """Find the count above which ids are taken, from the features' distinct counts."""
    profiles = [_profile(feature) for feature in features]
    values = np.unique(np.concatenate([one.values for one in profiles]))
    low, high = 0, len(values)  # the smallest place whose larger counts are few enough
    while low < high:
        middle = (low + high) // 2
        enough = sum(one.above(values[middle]) for one in profiles) <= total
        low, high = (low, middle) if enough else (middle + 1, high)
    if low == len(values):
        return (0,) * len(profiles)
    sizes = [one.above(values[low]) for one in profiles]
    left = total - sum(sizes)
    for f, one in enumerate(profiles):
        ties = min(left, one.above(values[low] - 1) - sizes[f])
        sizes[f] += ties
        left -= ties
    return tuple(sizes)


@dataclass(frozen=True)
class _Profile:
    """What is asked again and again of a feature's counts.

    Attributes:
        values: distinct counts, ascending.
        larger: number of ids with a count above each of them.
        start: 0 or 1 where the counts never rise from that id on, else None.
        first_rank: number of ids that are more frequent than id 0.
        smallest: number of ids with the smallest count.
    """

    values: Ids
    larger: Ids
    start: int | None
    first_rank: int
    smallest: int = 0

    def above(self, count: int) -> int:
        """Number of ids with a larger count."""
        place = int(np.searchsorted(self.values, count, side="right")) - 1
        return int(self.larger[place]) if place >= 0 else self.number

    @property
    def number(self) -> int:
        """Number of ids."""
        return int(self.larger[0]) + self.smallest if len(self.values) else 0


_PROFILES: dict[int, tuple[weakref.ref[Ids], _Profile]] = {}


def _profile(feature: Feature) -> _Profile:
    """Profile a feature's counts, once: budgets are solved by building a layer many times."""
    counts = feature.counts
    if counts is None:
        return _Profile(np.zeros(0, np.int64), np.zeros(0, np.int64), None, 0)
    known = _PROFILES.get(id(counts))
    if known is not None and known[0]() is counts:
        return known[1]
    values, numbers = np.unique(counts, return_counts=True)
    falls = np.diff(counts) <= 0
    start = 0 if bool(falls.all()) else 1 if bool(falls[1:].all()) else None
    made = _Profile(
        values=values,
        larger=len(counts) - numbers.cumsum(),
        start=start,
        first_rank=int((counts > counts[0]).sum()),
        smallest=int(numbers[0]),
    )
    key = id(counts)
    _PROFILES[key] = (weakref.ref(counts, lambda _: _PROFILES.pop(key, None)), made)
    return made


def _by_zipf(features: Sequence[Feature], total: int) -> tuple[int, ...]:
    """The t-th id of a feature with n ids counts 1 / (t H_n): take ids down to one threshold."""
    numbers = [feature.cardinality or 0 for feature in features]
    mass = np.array([_mass(n) if n else np.inf for n in numbers])
    low, high = 0.0, float(total * mass[np.isfinite(mass)].max(initial=1.0))
    for _ in range(100):
        scale = (low + high) / 2
        taken = sum(min(n, int(scale / m)) for n, m in zip(numbers, mass, strict=True))
        low, high = (scale, high) if taken <= total else (low, scale)
    sizes = [min(n, int(low / m)) for n, m in zip(numbers, mass, strict=True)]
    left = total - sum(sizes)
    for f in sorted(range(len(sizes)), key=lambda f: -numbers[f]):
        more = min(left, numbers[f] - sizes[f])
        sizes[f] += more
        left -= more
    return tuple(sizes)


def hot_ids(feature: Feature, size: int) -> Ids:
    """Return the ``size`` most frequent ids of a feature, ascending; ties go to lower ids."""
    if feature.counts is None:
        return np.arange(size)
    order = np.argsort(-feature.counts, kind="stable")
    return np.sort(order[:size])


def hot_start(feature: Feature, size: int) -> int | None:
    """First id of the ``size`` most frequent ids where ids are numbered by frequency, else None.

    An unknown slot at id 0 may have any count.
    """
    if feature.counts is None or size in (0, feature.cardinality):
        return 0
    profile = _profile(feature)
    if profile.start == 1:
        return 0 if profile.first_rank < size else 1
    return profile.start


def first_place(feature: Feature) -> int | None:
    """Place of id 0 among a feature's ids by falling counts, if the others are in order, else None.

    Id 0 may be an unknown slot of any count.
    """
    if feature.counts is None or feature.cardinality == 1:
        return 0
    profile = _profile(feature)
    return None if profile.start is None else profile.first_rank


def expected_counts(schema: Schema) -> npt.NDArray[np.float64]:
    """Return how often each id of all features occurs, ``[N]``; its scale is of no meaning.

    Where a feature has no counts, Zipf's law decides for all of them, as in `hot_sizes`.
    """
    cardinalities = schema.cardinalities
    counts = [feature.counts for feature in schema.features if feature.counts is not None]
    if len(counts) == len(cardinalities):
        return np.concatenate(counts).astype(np.float64)
    return np.concatenate([1 / (np.arange(1, n + 1) * _mass(n)) for n in cardinalities])


def cumulative_counts(schema: Schema, places: Ids) -> npt.NDArray[np.float64]:
    """Return how often the first ids of each feature occur, ids in the order of `first_place`.

    Args:
        schema: the features; where one has no counts, Zipf's law decides for all.
        places: int64 ``[F, K]``: numbers of ids.
    """
    if any(feature.counts is None for feature in schema.features):
        harmonic = np.log(np.maximum(places, 1)) + _GAMMA + 1 / (2 * np.maximum(places, 1))
        return np.where(places > 0, harmonic, 0.0) / [[_mass(n)] for n in schema.cardinalities]
    found = []
    for feature, own in zip(schema.features, places, strict=True):
        counts = np.asarray(feature.counts)
        first = first_place(feature) or 0
        ordered = np.concatenate([counts[1 : first + 1], counts[:1], counts[first + 1 :]])
        found.append(np.concatenate([[0], ordered.cumsum()])[own])
    return np.stack(found).astype(np.float64)


def _mass(n: int) -> float:
    """The n-th harmonic number."""
    return float(np.log(n) + _GAMMA + 1 / (2 * n))


def effective_sizes(schema: Schema) -> tuple[float, ...]:
    """Return the perplexity of each feature's ids: how many equally frequent ids it amounts to.

    Without counts, and for unbounded features, see the module's text; the latter count as the
    largest feature.
    """
    sizes = [_perplexity(feature) for feature in schema.features]
    largest = max((size for size in sizes if size is not None), default=1.0)
    return tuple(largest if size is None else size for size in sizes)


def _perplexity(feature: Feature) -> float | None:
    if feature.counts is not None and feature.counts.any():
        share = feature.counts[feature.counts > 0] / feature.counts.sum()
        return float(np.exp(-(share * np.log(share)).sum()))
    if feature.cardinality is None:
        return None
    # Zipf's law: entropy = log H_n + (1 / H_n) sum log(t) / t, and sum log(t) / t ~ log(n)^2 / 2
    n = feature.cardinality
    mass = _mass(n)
    return float(np.clip(np.exp(np.log(mass) + np.log(n) ** 2 / (2 * mass)), 1.0, n))
