"""Weighted k-means: Lloyd's algorithm from a k-means++ start, on any device.

Shape letters: N points, C numbers a point, K centroids.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK_NUMBERS = 1 << 22
_PLUS_PLUS = 2048
_START_POINTS = 32
_ROUNDS = 60
_LEAST_GAIN = 2e-5
_MOST_STARTS = 4
_CHEAP = 1 << 21
_LEAST_WEIGHT = 1e-4


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest of the centroids ``[K, C]`` of each point ``[N, C]``.

    Returns:
        Its number int64 ``[N]``, and the squared distance ``[N]``.
    """
    # products cancel less around the middle; the median is one that outliers do not move
    middle = centroids.median(0).values
    others = centroids - middle
    norms = others.square().sum(1)
    block = max(1, _BLOCK_NUMBERS // len(centroids))
    number = torch.empty(len(points), dtype=torch.int64, device=points.device)
    distance = points.new_empty(len(points))
    for first in range(0, len(points), block):
        part = points[first : first + block]
        own = torch.addmm(norms, part - middle, others.T, alpha=-2.0).argmin(1)
        number[first : first + block] = own
        distance[first : first + block] = (part - centroids[own]).square().sum(1)
    return number, distance


def k_means(points: Tensor, k: int, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return centroids ``[K, C]`` with a small weighted sum of squared distances.

    Lloyd, "Least Squares Quantization in PCM", IEEE Trans. Information Theory 28(2), 1982, from the
    greedy start of Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA
    2007 (random points for K above 2048); the best of several runs where they are cheap. A centroid
    that no point is nearest to moves to a point drawn by its share of the error. Where there are
    fewer distinct points than centroids, several are equal. The result is a function of the
    arguments and the generator's state.

    Args:
        points: ``[N, C]``, finite, N >= 1.
        k: K.
        weights: ``[N]``, not negative; None for equal ones. Points of less than a 10^4-th of the
            mean count as that much.
        generator: of the CPU.
    """
    weights = positive(weights, points)
    if k == 1:
        mean = (points.double() * weights[:, None].double()).sum(0) / weights.double().sum()
        return mean[None].to(points)
    runs = max(1, min(_MOST_STARTS, _CHEAP // (len(points) * k)))
    found = [_run(points, k, weights, generator) for _ in range(runs)]
    return min(found, key=lambda one: one[0])[1]


def _run(
    points: Tensor, k: int, weights: Tensor, generator: torch.Generator
) -> tuple[float, Tensor]:
    """Return the error of one run, and its centroids."""
    centroids = _start(points, k, weights, generator)
    best, last = (math.inf, centroids), math.inf
    for _ in range(_ROUNDS):
        number, distance = nearest(points, centroids)
        error = distance * weights
        total = float(error.sum(dtype=torch.float64))
        best = min(best, (total, centroids), key=lambda one: one[0])
        means, mass = grouped_means(points, number, weights, k)
        empty = (mass == 0).nonzero()[:, 0]
        if not total or (total >= last * (1 - _LEAST_GAIN) and not len(empty)):
            break
        last = total
        centroids = torch.where(mass[:, None] > 0, means.to(points), centroids)
        if len(empty):
            centroids[empty] = points[_draw(error, len(empty), generator)]
    return best


def grouped_means(
    points: Tensor, number: Tensor, weights: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of each group's points float64 ``[G, C]``, and its weight ``[G]``.

    Sums are in double precision, so that the order of additions does not show.
    """
    mass = torch.zeros(groups, dtype=torch.float64, device=points.device)
    mass.index_add_(0, number, weights.double())
    sums = mass.new_zeros(groups, points.shape[1])
    sums.index_add_(0, number, (points * weights[:, None]).double())
    return sums / mass.clamp(min=torch.finfo(torch.float64).tiny)[:, None], mass


def positive(weights: Tensor | None, points: Tensor) -> Tensor:
    """Return weights ``[N]`` of mean 1 on the points' device, none of them quite 0."""
    if weights is None or not float(weights.sum()) > 0:
        return points.new_ones(len(points))
    scaled = weights.double() / weights.double().mean()
    return scaled.clamp(min=_LEAST_WEIGHT).to(points)


def thinned(
    count: int, most: int, weights: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Choose about ``most`` of some points, with weights that stand for all of them.

    A point is taken with a chance in proportion to its weight, at most 1, and weighs its weight by
    its chance: heavy points are always there, and what is left out is made up for.

    Args:
        count: N.
        most: number of points wanted.
        weights: ``[N]``, or None for equal ones.
        generator: of the CPU.

    Returns:
        Ascending numbers of the points int64, and their weights; on the CPU.
    """
    if count <= most:
        return torch.arange(count), None if weights is None else weights.cpu()
    if weights is None:
        chosen = torch.randperm(count, generator=generator)[:most]
        return chosen.sort().values, None
    mass = weights.double().cpu()
    mass = (mass / mass.mean()).clamp(min=_LEAST_WEIGHT)
    low, high = 0.0, most / float(mass.min())
    for _ in range(60):
        scale = (low + high) / 2
        enough = float((mass * scale).clamp(max=1).sum()) >= most
        low, high = (low, scale) if enough else (scale, high)
    chance = (mass * high).clamp(max=1)
    drawn = torch.rand(count, dtype=torch.float64, generator=generator) < chance
    places = drawn.nonzero()[:, 0]
    return places, (mass / chance)[places].float()


def _start(points: Tensor, k: int, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return the first centroids."""
    few, mass = thinned(len(points), max(_START_POINTS * k, 4096), weights, generator)
    points = points[few.to(points.device)]
    weights = weights[few.to(weights.device)] if mass is None else mass.to(points)
    if k > _PLUS_PLUS:
        order = torch.randperm(len(points), generator=generator)[:k]
        return points[order.repeat(-(-k // len(order)))[:k].to(points.device)]
    trials = 2 + int(math.log(k))
    chosen = _draw(weights, 1, generator)
    distance = (points - points[chosen]).square().sum(1)
    centroids = [points[chosen]]
    for _ in range(k - 1):
        trial = _draw(distance * weights, trials, generator)
        others = (points[trial][:, None] - points).square().sum(2)
        closer = torch.minimum(distance, others)
        best = (closer @ weights).argmin()
        centroids.append(points[trial[best]][None])
        distance = closer[best]
    return torch.cat(centroids)


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw places int64 ``[count]`` by their share of the mass ``[N]``; evenly where it is 0."""
    ends = mass.double().cumsum(0).cpu()
    if not float(ends[-1]) > 0:
        ends = torch.arange(1, len(mass) + 1, dtype=torch.float64)
    at = torch.rand(count, dtype=torch.float64, generator=generator) * ends[-1]
    return torch.searchsorted(ends, at, right=True).clamp(max=len(mass) - 1).to(mass.device)
