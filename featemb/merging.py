"""Merging near-identical vectors into a given number, by locality-sensitive hashing.

Shape letters: N vectors, K numbers a vector, A vectors that are still apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featemb.hashing import mix64

_SEED = 0x5EED
_BANDS = 4
_PROJECTIONS = 4
_FIRST_RADIUS = 0.01
_GROWTH = 1.5
_LAST_RADIUS = 8.0
_TOLERANCE = 0.25
_CELL = 4.0
_ROWS = 1 << 16
_ROUNDS = 200


@dataclass
class _State:
    """What is merged so far.

    Attributes:
        vectors: ``[N, K]``.
        leader: int64 ``[N]``, what each is merged into; one still apart is its own.
        mass: int64 ``[N]``, what each and those merged into it weigh.
        active: int64 ``[A]``, those still apart, ascending.
        target: how many are wanted.
    """

    vectors: Tensor
    leader: Tensor
    mass: Tensor
    active: Tensor
    target: int

    @property
    def surplus(self) -> int:
        """How many merges are left to do."""
        return len(self.active) - self.target


@torch.no_grad()
def merge(vectors: Tensor, counts: Tensor, target: int, similarity: float = 0.0) -> Tensor:
    """Merge vectors until ``target`` are left, near ones first.

    Datar et al., "Locality-Sensitive Hashing Scheme Based on p-Stable Distributions", SoCG 2004:
    a band's key is made of ``floor((a v + u) / w)`` for some random projections a. Rounds of
    several bands with a growing radius, w = 4 radius: in a bucket of equal keys the heaviest vector
    (then that of the lowest number) leads, and those within the radius of it are merged into it. A
    vector weighs its count and 1, and what those weigh that were merged into it: outliers do not
    swallow groups that are merged already. The first radius is 0: exact duplicates go first. The
    next is a hundredth of ``s sqrt(K)``, s the standard deviation of all numbers. The last band
    takes its merges in ascending distance until exactly ``target`` are left. The result is a
    function of the arguments.

    Args:
        vectors: ``[N, K]``, finite.
        counts: int64 ``[N]``.
        target: number of vectors to keep, at least 1.
        similarity: 0 merges until the target is met; what was merged into a vector follows it.
            Above 0 a vector is only merged where at least this share of its numbers, and of each
            that follows it, differs by at most ``s / 4``; more than ``target`` may be left.

    Returns:
        int64 ``[N]``: the vector that each is merged into in the end; a kept one is its own.
    """
    number, size = vectors.shape
    everything = torch.arange(number, device=vectors.device)
    state = _State(vectors, everything, counts + 1, everything, target)
    if state.surplus > 0:
        _band(state, _exact_keys(vectors, everything), 0.0, similarity, 0.0)
    deviation = float(vectors.std(correction=0))
    scale, tolerance = deviation * size**0.5, deviation * _TOLERANCE
    generator = torch.Generator().manual_seed(_SEED)
    factor = _FIRST_RADIUS
    for _ in range(_ROUNDS):
        for _ in range(_BANDS):
            if state.surplus <= 0 or (similarity and factor > _LAST_RADIUS):
                return state.leader
            keys = _near_keys(vectors, state.active, factor * scale * _CELL, generator)
            _band(state, keys, factor * scale, similarity, tolerance)
        factor *= _GROWTH
    raise ValueError("the vectors are not finite")


def _band(state: _State, keys: Tensor, radius: float, similarity: float, tolerance: float) -> None:
    """Merge within the buckets of equal keys int64 ``[A]`` of the active vectors."""
    heavy = torch.argsort(state.mass[state.active], descending=True, stable=True)
    ordered, place = torch.sort(keys[heavy], stable=True)
    place = heavy[place]
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    heads = place[first][first.cumsum(0) - 1][~first]
    followers = place[~first]
    head, follower = state.active[heads], state.active[followers]
    distance = _compare(state.vectors, head, follower, tolerance)[0]
    take = distance <= radius
    if similarity:
        take &= _all_alike(state, head, follower, similarity, tolerance)
    chosen = take.nonzero()[:, 0]
    if len(chosen) > state.surplus:
        chosen = chosen[torch.argsort(distance[chosen], stable=True)[: state.surplus]]
    moved = torch.arange(len(state.leader), device=keys.device)
    moved[follower[chosen]] = head[chosen]
    state.leader = moved[state.leader]
    state.mass.index_add_(0, head[chosen], state.mass[follower[chosen]])
    apart = torch.ones_like(state.active, dtype=torch.bool)
    apart[followers[chosen]] = False
    state.active = state.active[apart]


def _all_alike(
    state: _State, head: Tensor, follower: Tensor, similarity: float, tolerance: float
) -> Tensor:
    """Whether each follower, and all that are merged into it, are alike to the head: ``[P]``."""
    number = len(state.leader)
    wanted = torch.full((number,), -1, device=head.device)
    wanted[follower] = head
    member = (wanted[state.leader] >= 0).nonzero()[:, 0]
    group = state.leader[member]
    alike = _compare(state.vectors, wanted[group], member, tolerance)[1]
    holds = torch.ones(number, dtype=torch.bool, device=head.device)
    holds[group[alike < similarity]] = False
    return holds[follower]


def _compare(
    vectors: Tensor, one: Tensor, other: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return distances ``[P]`` of pairs, and the share of numbers within a tolerance."""
    distances, shares = [vectors.new_zeros(0)], [vectors.new_zeros(0)]
    for at in range(0, len(one), _ROWS):
        apart = (vectors[one[at : at + _ROWS]] - vectors[other[at : at + _ROWS]]).abs()
        distances.append(apart.norm(dim=1))
        shares.append((apart <= tolerance).to(vectors.dtype).mean(1))
    return torch.cat(distances), torch.cat(shares)


def _exact_keys(vectors: Tensor, active: Tensor) -> Tensor:
    """Keys int64 ``[A]`` that equal vectors share, and others hardly ever."""
    columns = mix64(torch.arange(1, vectors.shape[1] + 1, device=vectors.device))
    keys = [active[:0]]
    for at in range(0, len(active), _ROWS):
        part = vectors[active[at : at + _ROWS]].float() + 0.0  # -0 becomes 0
        keys.append((mix64(part.view(torch.int32).long()) * columns).sum(1))
    return torch.cat(keys)


def _near_keys(vectors: Tensor, active: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Keys int64 ``[A]`` of one band: near vectors often share them."""
    directions = torch.randn(vectors.shape[1], _PROJECTIONS, generator=generator).to(vectors)
    shift = torch.rand(_PROJECTIONS, generator=generator).to(vectors)
    keys = [active[:0]]
    for at in range(0, len(active), _ROWS):
        cells = (vectors[active[at : at + _ROWS]] @ directions / width + shift).floor().long()
        key = torch.zeros_like(cells[:, 0])
        for cell in cells.unbind(1):
            key = mix64(key + cell)
        keys.append(key)
    return torch.cat(keys)
