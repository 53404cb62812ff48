"""Scaled signs: rows as sums ``sum_k a_k s_k``, their scales and the nearest codes.

Shape letters: N rows, C numbers a row, K stages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featemb.codecs.pq import blocks

_ROUNDS = 8
_HALF_MAX = 65504.0


def all_levels(scales: Tensor) -> Tensor:
    """Return the sums of scales ``[N, K]`` with all signs, ``[N, 2^K]``: bit k set adds a_k."""
    levels = scales.new_zeros(scales.shape[0], 1)
    for scale in scales.unbind(1):
        levels = torch.cat([levels - scale[:, None], levels + scale[:, None]], 1)
    return levels


def weighted_mean(table: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean row, by weights where there are any."""
    if weights is None or not bool(weights.any()):
        return table.double().mean(0).float()
    own = weights[:, None].to(table.device)
    return ((table.double() * own).sum(0) / own.sum()).float()


def _start(rows: Tensor, bits: int) -> Tensor:
    """Return the greedy scales ``[N, K]`` of rows ``[N, C]``."""
    left, scales = rows, []
    for _ in range(bits):
        scale = left.abs().mean(1, keepdim=True)
        left = left - scale * torch.where(left < 0, -1.0, 1.0)
        scales.append(scale)
    return torch.cat(scales, 1)


def nearest_signs(rows: Tensor, scales: Tensor) -> Tensor:
    """Return the codes int64 ``[N, C]`` of the nearest levels."""
    distance = (rows[..., None] - all_levels(scales)[:, None]).abs()
    return distance.argmin(2)


def _signs(codes: Tensor, bits: int) -> Tensor:
    """Return the signs ``[N, C, K]`` of codes."""
    shifts = torch.arange(bits, device=codes.device)
    return ((codes[..., None] >> shifts) & 1).float() * 2 - 1


def _solved(moments: Tensor, sides: Tensor) -> Tensor:
    """Solve for scales; equal signs of two stages leave their sum, which a ridge divides."""
    ridge = torch.eye(moments.shape[-1], dtype=torch.float64, device=moments.device) * 1e-9
    scaled = ridge * moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-30)
    found: Tensor = torch.linalg.solve(moments + scaled, sides[..., None])[..., 0]
    return found


def row_scales(rows: Tensor, bits: int) -> Tensor:
    """Return scales ``[N, K]`` of rows, each with the least error that its rounds met."""
    scales = best = _start(rows, bits)
    least = _errors(rows, best)
    for _ in range(_ROUNDS):
        signs = _signs(nearest_signs(rows, scales), bits).double()
        moments = signs.transpose(1, 2) @ signs
        sides = (signs.transpose(1, 2) @ rows.double()[..., None])[..., 0]
        scales = _solved(moments, sides).float().clamp(-_HALF_MAX, _HALF_MAX)
        error = _errors(rows, scales)
        best = torch.where((error < least)[:, None], scales, best)
        least = torch.minimum(error, least)
    return best


def _errors(rows: Tensor, scales: Tensor) -> Tensor:
    """Return the squared error of each row with its rounded scales."""
    used = scales.half().float()
    found = all_levels(used).gather(1, nearest_signs(rows, used))
    return (found - rows).double().square().sum(1)


def table_scales(table: Tensor, weights: Tensor | None, bits: int) -> Tensor:
    """Return the scales ``[1, K]`` of a whole table."""
    sample = table if len(table) <= 1 << 17 else table[:: len(table) >> 17]
    mass = None if weights is None else weights.to(table.device)
    if mass is not None and len(sample) < len(table):
        mass = mass[:: len(table) >> 17]
    scales = best = _start(sample.reshape(1, -1), bits)
    least = float("inf")
    for _ in range(_ROUNDS + 1):
        used = scales.half().float()
        error = 0.0
        moments = torch.zeros(bits, bits, dtype=torch.float64, device=table.device)
        sides = torch.zeros(bits, dtype=torch.float64, device=table.device)
        for first, some in blocks(sample):
            own = torch.ones(len(some), device=some.device).double()
            own = own if mass is None else mass[first : first + len(some)].double()
            codes = nearest_signs(some, used.expand(len(some), -1))
            signs = _signs(codes, bits).double()
            weighed = signs * own[:, None, None]
            moments += torch.einsum("nck,ncl->kl", weighed, signs)
            sides += torch.einsum("nck,nc->k", weighed, some.double())
            left = some - (signs.float() * used[:, None]).sum(2)
            error = error + float((left.double().square().sum(1) * own).sum())
        if error < least:
            least, best = error, scales
        scales = _solved(moments[None], sides[None]).float().clamp(-_HALF_MAX, _HALF_MAX)
    return best
