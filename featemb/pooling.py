"""From vectors of ids to vectors of features: pooling of bags, and the output layout.

Shape letters: B samples, F features, N ids, D width, W sum of the features' widths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featemb.schema import Schema


def pool_bags(vectors: Tensor, lengths: Tensor, schema: Schema) -> Tensor:
    """Pool the vectors ``[N, D]`` of feature-major bags into ``[B, F, D]``; empty bags give zeros.

    Each feature pools by its schema's rule: sum, mean or max.
    """
    num_features, dim = schema.num_features, vectors.shape[1]
    bags = lengths.numel()
    bag_of = torch.repeat_interleave(torch.arange(bags, device=lengths.device), lengths)
    index = bag_of[:, None].expand(-1, dim)
    summed = vectors.new_zeros(bags, dim).scatter_add(0, index, vectors)
    rules = [feature.pooling for feature in schema.features]
    if "mean" in rules:
        counts = lengths.clamp(min=1).to(vectors.dtype)
        divide = torch.tensor([rule == "mean" for rule in rules], device=lengths.device)
        divisor = torch.where(divide[:, None], counts.view(num_features, -1), 1.0).to(vectors.dtype)
        summed = summed / divisor.reshape(-1, 1)
    if "max" in rules:
        zeros = vectors.new_zeros(bags, dim)
        largest = zeros.scatter_reduce(0, index, vectors, "amax", include_self=False)
        use_max = torch.tensor([rule == "max" for rule in rules], device=lengths.device)
        use_max = use_max.repeat_interleave(bags // num_features)[:, None]
        summed = torch.where(use_max, largest, summed)
    return summed.view(num_features, -1, dim).transpose(0, 1)


def lay_out(vectors: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Return ``[B, W]`` from ``[B, F, D]``: the first ``widths[f]`` columns of every feature."""
    if all(width == vectors.shape[2] for width in widths):
        return vectors.reshape(vectors.shape[0], -1)
    return torch.cat([vectors[:, f, :width] for f, width in enumerate(widths)], dim=1)
