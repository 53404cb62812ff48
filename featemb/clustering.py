"""k-means for many short vectors, and their nearest centroids."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_TREE_WIDTH = 8
_BLOCK_NUMBERS = 1 << 24
_BATCH = 4096


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
    points: Floats, k: int, random: np.random.Generator, weights: Floats, epochs: int = 10
) -> Floats:
    """Return centroids ``[K, C]`` of scikit-learn's mini-batch k-means (Sculley, WWW 2010).

    Args:
        points: ``[N, C]``, N >= K.
        k: K.
        random: seeds the algorithm.
        weights: ``[N]``, not negative.
        epochs: passes over the points at most.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    model = MiniBatchKMeans(
        n_clusters=k,
        init="random",
        n_init=1,
        max_iter=epochs,
        batch_size=min(len(points), max(_BATCH, 2 * k)),
        init_size=len(points),
        random_state=int(random.integers(2**31)),
    )
    with warnings.catch_warnings():
        # fewer distinct points than centroids: the spare ones stay unused
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points, sample_weight=np.maximum(weights, 1e-6))
    return np.asarray(model.cluster_centers_, dtype=np.float32)
