"""From vectors of ids to vectors of features: pooling of bags, and the output layout.

Shape letters: B samples, F features, N ids, D width, W sum of the features' widths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featemb.ids import Jagged, feature_index, tracing
from featemb.schema import Schema


def bag_index(lengths: Tensor, count: int) -> Tensor:
    """Return the bag of every value, int64 ``[count]``, of bags of some lengths ``[F * B]``."""
    bags, device = lengths.shape[0], lengths.device
    if not tracing():
        return torch.repeat_interleave(torch.arange(bags, device=device), lengths)
    # exporters know no repetition by a tensor: count the bags that end at or before each value
    ends = lengths.cumsum(0).clamp(min=0, max=count)
    closed = torch.zeros(count + 1, dtype=torch.int64, device=device)
    closed = closed.scatter_add(0, ends, torch.ones_like(ends))
    return closed.cumsum(0)[:count].clamp(max=bags - 1)


def feature_of_values(ids: Jagged, num_features: int) -> Tensor:
    """Return the feature of every value, int64 ``[N]``."""
    if not tracing():
        return feature_index(ids.lengths, num_features)
    return bag_index(ids.lengths, ids.values.shape[0]) // (ids.lengths.shape[0] // num_features)


def pool_bags(vectors: Tensor, lengths: Tensor, schema: Schema) -> Tensor:
    """Pool the vectors ``[N, D]`` of feature-major bags into ``[B, F, D]``; empty bags give zeros.

    Each feature pools by its schema's rule: sum, mean or max.
    """
    num_features, dim = schema.num_features, vectors.shape[1]
    bags = lengths.numel()
    bag_of = bag_index(lengths, vectors.shape[0])
    index = bag_of[:, None].expand(-1, dim)
    summed = vectors.new_zeros(bags, dim).scatter_add(0, index, vectors)
    rules = [feature.pooling for feature in schema.features]
    if "mean" in rules:
        counts = lengths.clamp(min=1).to(vectors.dtype)
        divide = torch.tensor([rule == "mean" for rule in rules], device=lengths.device)
        divisor = torch.where(divide[:, None], counts.view(num_features, -1), 1.0).to(vectors.dtype)
        summed = summed / divisor.reshape(-1, 1)
    if "max" in rules:
        largest = _largest(vectors, index, lengths)
        use_max = torch.tensor([rule == "max" for rule in rules], device=lengths.device)
        use_max = use_max[:, None].expand(num_features, bags // num_features).reshape(-1, 1)
        summed = torch.where(use_max, largest, summed)
    return summed.view(num_features, -1, dim).transpose(0, 1)


def _largest(vectors: Tensor, index: Tensor, lengths: Tensor) -> Tensor:
    """Return the largest numbers ``[F * B, D]`` of every bag, zeros for an empty one."""
    shape = (lengths.numel(), vectors.shape[1])
    if not tracing():
        zeros = vectors.new_zeros(shape)
        return zeros.scatter_reduce(0, index, vectors, "amax", include_self=False)
    # ONNX knows the form that counts what was there before
    least = vectors.new_full(shape, -torch.inf).scatter_reduce(0, index, vectors, "amax")
    return torch.where(lengths[:, None] > 0, least, 0.0)


def lay_out(vectors: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return ``[B, W]`` from ``[B, F, D]``: the first ``widths[f]`` columns of every feature."""
    if all(width == vectors.shape[2] for width in widths):
        return vectors.reshape(vectors.shape[0], -1)
    return torch.cat([vectors[:, f, :width] for f, width in enumerate(widths)], dim=1)
