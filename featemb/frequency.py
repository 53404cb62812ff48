"""Which ids are frequent: by the training counts, or by their number where there are none.

Features without counts are taken to be numbered by frequency, id 0 the most frequent, as the
project's data sets are; their counts are taken to follow Zipf's law, ``1 / (id + 1)``, each feature
occurring as often as every other. Unbounded features without counts have no frequent ids.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        return _by_counts([feature.counts for feature in schema.features], total)
    return _by_zipf(schema.features, total)


def _by_counts(counts: Sequence[Ids | None], total: int) -> tuple[int, ...]:
    known = [np.zeros(0, np.int64) if one is None else one for one in counts]
    everything = np.concatenate(known)
    if total == 0 or not len(everything):
        return (0,) * len(known)
    least = np.partition(everything, len(everything) - total)[len(everything) - total]
    sizes = [int((one > least).sum()) for one in known]
    left = total - sum(sizes)
    for f, one in enumerate(known):
        ties = min(left, int((one == least).sum()))
        sizes[f] += ties
        left -= ties
    return tuple(sizes)


def _by_zipf(features: Sequence[Feature], total: int) -> tuple[int, ...]:
    """The t-th id of a feature with n ids counts 1 / (t H_n): take ids down to one threshold."""
    numbers = [feature.cardinality or 0 for feature in features]
    mass = np.array([np.log(n) + _GAMMA + 1 / (2 * n) if n else np.inf for n in numbers])
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
    """First id of the ``size`` most frequent ids where they follow each other, else None."""
    if feature.counts is None or size == 0 or size == feature.cardinality:
        return 0
    counts = feature.counts
    least = np.partition(counts, len(counts) - size)[len(counts) - size]
    first = int(np.argmax(counts >= least))
    window = counts[first : first + size]
    inside = bool((window >= least).all()) and len(window) == size
    # outside of the window nothing may be more frequent than the least inside
    return first if inside and int((counts > least).sum()) == int((window > least).sum()) else None


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
    mass = np.log(n) + _GAMMA + 1 / (2 * n)
    return float(np.clip(np.exp(np.log(mass) + np.log(n) ** 2 / (2 * mass)), 1.0, n))
