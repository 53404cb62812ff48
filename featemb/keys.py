"""`best_keys`: which of a few keys is the best one for each of many queries.

Shape letters: n queries, C numbers each, K keys.

Matrix products are fast, but what they round to depends on how many queries there are. An answer
that is served must not: the code of a row is the same whether it is computed for a batch, or for
the whole table. So where products leave a doubt, sums in a fixed order decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_NUMBERS = 1 << 22
_REDUCED_UNIT = 2.0**-7  # of products that torch may compute in bfloat16


def best_keys(
    queries: Tensor, keys: Tensor, *, dot: bool, allowed: Tensor | None, exact: bool
) -> Tensor:
    """Return the number of the best key of each query, int64 ``[n]``; of equal ones the first.

    Args:
        queries: ``[n, C]``.
        keys: ``[K, C]``.
        dot: whether the best key is that of the largest product, or else the nearest one.
        allowed: int64 ``[n]``, how many of the keys, the first ones, each query may have; None for
            all.
        exact: whether the answer of a query may depend on nothing but itself and the keys. If not,
            keys that are equally good up to rounding are as good as one another.
    """
    block = max(1, _BLOCK_NUMBERS // len(keys))
    some = torch.split(queries, block)
    limits = [None] * len(some) if allowed is None else torch.split(allowed, block)
    found = [_best(q, keys, dot, limit, exact) for q, limit in zip(some, limits, strict=True)]
    return torch.cat(found)


def _best(q: Tensor, keys: Tensor, dot: bool, allowed: Tensor | None, exact: bool) -> Tensor:
    product = q @ keys.T
    score = _masked(-product if dot else keys.square().sum(1) - 2 * product, allowed)
    best = score.argmin(1)
    if not exact:
        return best
    lowest = score.gather(1, best[:, None])
    near = score <= lowest + _margin(q, keys, product.dtype)
    unsure = (near.sum(1) > 1).nonzero()[:, 0]
    if len(unsure):
        few = None if allowed is None else allowed[unsure]
        best[unsure] = _masked(_in_order(q[unsure], keys, dot), few).argmin(1)
    return best


def _margin(q: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``[n, 1]``: scores that are further apart are in the order of the exact ones.

    A sum of C products of numbers within |q| and |k| is off by at most ``(C + 3) u (|q| + |k|)^2``,
    u the unit of rounding, in any order of additions. Two scores, each computed in two ways, are
    off by four times that; it is doubled, since |q| and |k| are rounded themselves.
    """
    unit = torch.finfo(dtype).eps
    if torch.get_float32_matmul_precision() != "highest":
        unit = max(unit, _REDUCED_UNIT)
    norm = torch.linalg.vector_norm
    reach = norm(q, dim=1, keepdim=True) + norm(keys, dim=1).max()
    margin: Tensor = 8 * (q.shape[1] + 3) * (unit * reach.square() + torch.finfo(q.dtype).tiny)
    return margin


def _in_order(q: Tensor, keys: Tensor, dot: bool) -> Tensor:
    """Return scores ``[n, K]``, whose C terms are added one after the other."""
    total = q.new_zeros(len(q), len(keys))
    for own, other in zip(q.T, keys.T, strict=True):
        if dot:
            total = total - own[:, None] * other
        else:
            apart = own[:, None] - other
            total = total + apart * apart
    return total


def _masked(score: Tensor, allowed: Tensor | None) -> Tensor:
    if allowed is None:
        return score
    number = torch.arange(score.shape[1], device=score.device)
    return score.masked_fill(number >= allowed[:, None], torch.inf)
