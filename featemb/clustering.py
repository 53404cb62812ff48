"""k-means for many short vectors: Lloyd's algorithm over a k-d tree.

With thousands of centroids and a few numbers a vector, the tree finds the nearest centroid in a
small part of the time that comparing with all of them takes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_TREE_WIDTH = 8
_BLOCK_NUMBERS = 1 << 24


def nearest(points: Floats, centroids: Floats) -> Ints:
    """Return the number int64 ``[N]`` of the nearest of the centroids ``[K, C]`` of each point.

    Args:
        points: ``[N, C]``.
        centroids: ``[K, C]``.
    """
    if points.shape[1] <= _TREE_WIDTH:
        from scipy.spatial import cKDTree  # type: ignore[attr-defined,unused-ignore]

        return np.asarray(cKDTree(centroids).query(points)[1], dtype=np.int64)
    others = torch.from_numpy(centroids)
    norms = others.square().sum(1)
    block = max(1, _BLOCK_NUMBERS // len(centroids))
    starts = range(0, len(points), block)
    parts = [torch.from_numpy(points[at : at + block]) for at in starts]
    found = torch.cat([(norms - 2 * part @ others.T).argmin(1) for part in parts])
    return np.asarray(found.numpy(), dtype=np.int64)


def k_means(
    points: Floats, k: int, random: np.random.Generator, weights: Floats, rounds: int = 10
) -> Floats:
    """Return centroids ``[K, C]`` that minimise the weighted squared distance to the nearest.

    Lloyd, "Least squares quantization in PCM", 1982, from points drawn by their weights. A centroid
    that no point is nearest to moves to the point that is farthest from its own; it stays unused
    where every point has a centroid at its place.

    Args:
        points: ``[N, C]``, N >= K.
        k: K.
        random: draws the first centroids.
        weights: ``[N]``, not negative.
        rounds: steps of the algorithm.
    """
    # the K largest of weight-scaled exponentials are a draw without replacement (Efraimidis, 2006)
    keys = random.exponential(size=len(points)) / np.maximum(weights, 1e-30)
    centroids = points[np.sort(np.argpartition(keys, k - 1)[:k])].copy()
    for _ in range(rounds):
        owner = nearest(points, centroids)
        mass = np.bincount(owner, weights, k)
        used = mass > 0
        for column in range(points.shape[1]):
            total = np.bincount(owner, weights * points[:, column], k)
            centroids[used, column] = total[used] / mass[used]
        unused = np.flatnonzero(np.bincount(owner, minlength=k) == 0)
        if len(unused):
            error = weights * np.square(points - centroids[owner]).sum(1)
            far = np.argsort(-error, kind="stable")[: len(unused)]
            far = far[error[far] > 0]
            centroids[unused[: len(far)]] = points[far]
    return centroids
