"""`HotSketch`: a SpaceSaving sketch in buckets of 4 slots, as tensor operations of fixed sizes.

No operation here reads a tensor's value on the host, so that an update never waits for the device.
Arrays whose length would depend on values have their largest length instead; entries that are not
needed repeat one that is, or go to a place that is cut off.

Shape letters: N recorded lookups, S buckets, H hot rows, K promotions at most in an update.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from featemb.parts.sketch import COLD, MEDIUM, SLOTS, SketchAddress
from featemb.rows import copy_rows, gather_rows

_DECAY_EVERY = 10  # decay when the inserted score passes this times S * threshold
_EMPTY = -1
_LOW = (1 << 31) - 1


class Lookups(NamedTuple):
    """Looked-up ids with their scores; a negative score marks an id that is not to be counted.

    Attributes:
        ids: int64 ``[N]``.
        feature: int64 ``[N]``.
        scores: ``[N]``.
    """

    ids: Tensor
    feature: Tensor
    scores: Tensor


class HotSketch(nn.Module):
    """What training keeps beside a `SketchAddress`: scores, free hot rows, and how they change.

    Args:
        buckets: S.
        hot_rows: H; the table's first rows.
        threshold: score from which an id gets a hot row.
        medium: score from which an id reads the medium block; None without one.
        decay: factor of all scores at a decay.
        device: where the tensors are made.

    Attributes:
        scores: ``[S, 4]``; 0 in empty slots.
        free_rows: int32 ``[H]``, a stack of which the first ``num_free`` are the free hot rows.
        num_free: int64 scalar.
        inserted: lookups counted since the last decay, int64 scalar; it stays on the CPU. Their
            number follows from shapes, so that in bags it includes those with negative scores.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "scores": "sketch",
        "free_rows": "sketch",
        "num_free": "sketch",
    }
    scores: Tensor
    free_rows: Tensor
    num_free: Tensor

    def __init__(
        self,
        buckets: int,
        hot_rows: int,
        threshold: float,
        medium: float | None,
        decay: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.threshold, self.medium, self.decay = threshold, medium, decay
        self.inserted = torch.tensor(0, device="cpu")
        free = torch.arange(hot_rows - 1, -1, -1, dtype=torch.int32, device=device)
        self.register_buffer("scores", torch.zeros(buckets, SLOTS, device=device))
        self.register_buffer("free_rows", free)
        self.register_buffer("num_free", torch.tensor(hot_rows, device=device))

    def get_extra_state(self) -> Tensor:
        """Return ``inserted``, for the state dict."""
        return self.inserted

    def set_extra_state(self, state: Tensor) -> None:
        """Take ``inserted`` from a state dict."""
        self.inserted.copy_(state)

    @torch.no_grad()
    def update(self, address: SketchAddress, weight: Tensor, found: Lookups) -> None:
        """Count a step's lookups, give rows to ids that became hot, and decay when it is time.

        Args:
            address: the address whose keys and pointers are changed.
            weight: the table's parameter, whose rows (and optimizer state) are copied.
            found: the step's lookups.
        """
        key, score, position = distinct_keys(address.key(found.ids, found.feature), found.scores)
        key, score, position = shorten((key >= 0).sum(), key, score, position)
        self._count(address, key, score)
        self._promote(address, weight, key, position, found)
        self.inserted += found.ids.numel()
        if self.inserted > _DECAY_EVERY * self.scores.shape[0] * self.threshold:
            self.inserted.zero_()
            self._decay(address)

    def _count(self, address: SketchAddress, key: Tensor, score: Tensor) -> None:
        """Add scores to the slots of their keys; let the best of the others into their buckets.

        Of a bucket's keys without a slot, the r-th by score takes the r-th smallest slot that is
        not hot, and adds to that slot's score, as in SpaceSaving.
        """
        home = address.home(key)
        slot, known = _slot(address, key, home)
        self.scores.view(-1).index_add_(0, slot, torch.where(known, score, 0))
        bucket, new_keys, new_scores, groups = _entrants(
            torch.where(known | (key < 0), self.scores.shape[0], home),
            key,
            score,
            self.scores.shape[0],
        )
        keys, scores, pointers = (
            gather_rows(one, bucket) for one in (address.keys, self.scores, address.pointers)
        )
        cost, order = torch.where(pointers >= 0, torch.inf, scores).sort(dim=1, stable=True)
        enter = (new_keys != _EMPTY) & (cost < torch.inf)
        mine = torch.where(enter, new_keys.to(keys.dtype), keys.gather(1, order))
        keys = keys.scatter(1, order, mine)
        scores = scores.scatter_add(1, order, torch.where(enter, new_scores, 0))
        pointers = pointers.scatter(1, order, pointers.gather(1, order).masked_fill(enter, COLD))
        real = _repeat_last(bucket.numel(), groups)
        address.keys[bucket[real]] = keys[real]
        self.scores[bucket[real]] = scores[real]
        address.pointers[bucket[real]] = pointers[real]

    def _promote(
        self,
        address: SketchAddress,
        weight: Tensor,
        key: Tensor,
        position: Tensor,
        found: Lookups,
    ) -> None:
        """Give free hot rows to the batch's best ids above the threshold, with what they read."""
        slot, known = _slot(address, key, address.home(key))
        score = torch.where(known, self.scores.view(-1).index_select(0, slot), -1.0)
        pointer = address.pointers.view(-1).index_select(0, slot)
        score_of_cold = torch.where(pointer >= 0, -1.0, score)
        most = self.most_promotions(found.ids.numel())
        count = min(key.numel(), self.free_rows.numel(), most)
        best, order = score_of_cold.sort(descending=True, stable=True)
        rank = torch.arange(count, device=key.device)
        taken = ((best[:count] >= self.threshold) & (rank < self.num_free)).sum()
        real = _repeat_last(count, taken)
        some, order = taken > 0, order[:count][real]
        free = self.free_rows[(self.num_free - 1 - real).clamp(min=0)].long()
        origin = position[order]
        source = address(found.ids[origin], found.feature[origin])
        # without a promotion, row 0 is copied onto itself
        copy_rows(weight, torch.where(some, source, 0), torch.where(some, free, 0))
        if self.medium is not None:
            warm = known & (pointer == COLD) & (score >= self.medium)
            value = torch.where(warm, MEDIUM, _LOW).int()
            address.pointers.view(-1).scatter_reduce_(0, slot, value, "amin")
        won = torch.where(some, free, MEDIUM).int()
        address.pointers.view(-1).scatter_reduce_(0, slot[order], won, "amax")
        self.num_free -= taken

    def most_promotions(self, lookups: int) -> int:
        """Promotions in one update at most: about what the scores of so many lookups can lift."""
        return 64 + int(lookups / self.threshold)

    def _decay(self, address: SketchAddress) -> None:
        """Decay all scores; hot and medium slots that fall below their threshold lose their rows.

        Nothing is copied back: the id reads the hashed rows as others have trained them meanwhile.
        """
        self.scores *= self.decay
        pointers = address.pointers.view(-1)
        scores = self.scores.view(-1)
        hot = pointers >= 0
        lost = hot & (scores < self.threshold)
        place = torch.where(lost, self.num_free + lost.cumsum(0) - 1, self.free_rows.numel())
        stack = torch.cat([self.free_rows, self.free_rows[:1]])
        self.free_rows.copy_(stack.scatter(0, place, pointers)[:-1])
        self.num_free += lost.sum()
        below = torch.full_like(pointers, COLD)
        if self.medium is not None:
            below.masked_fill_(scores >= self.medium, MEDIUM)
        pointers.copy_(torch.where(hot & ~lost, pointers, below))


def distinct_keys(keys: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum scores ``[N]`` over equal keys ``[N]``; a negative score drops its entry.

    Returns:
        Keys in ascending order with -1 behind them, their scores, and a position of each key in
        the input; all ``[N]``.
    """
    last = torch.iinfo(torch.int64).max
    ordered, order = torch.where(scores < 0, last, keys).sort(stable=True)
    first = _first(ordered)
    group = first.cumsum(0) - 1
    total = torch.zeros_like(scores).index_add_(
        0, group, scores.index_select(0, order).clamp(min=0)
    )
    key = torch.full_like(keys, _EMPTY).scatter_(
        0, group, torch.where(ordered == last, _EMPTY, ordered)
    )
    start = torch.zeros_like(group).scatter_reduce_(
        0, group, torch.where(first, torch.arange(len(group), device=keys.device), 0), "amax"
    )
    return key, total, order.index_select(0, start)


def _entrants(
    home: Tensor, key: Tensor, score: Tensor, buckets: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather the best 4 keys of each bucket; keys with ``home == buckets`` are left out.

    Equal scores go by key, the smallest first. There are ``G = min(N, S)`` groups at most.

    Returns:
        Buckets ``[G]``, keys ``[G, 4]`` (-1 where there is none) and scores ``[G, 4]`` in
        descending order, and the number of groups that are used, a scalar.
    """
    device = key.device
    # the bits of a float >= 0 are in its order
    low = _LOW - score.float().view(torch.int32).long()
    order = ((home << 31) | low).argsort(stable=True)
    (order,) = shorten((home < buckets).sum(), order)
    most = min(order.numel(), buckets)
    home, key, score = (one.index_select(0, order) for one in (home, key, score))
    first, used = _first(home), home < buckets
    group = first.cumsum(0) - 1
    index = torch.arange(key.numel(), device=device)
    rank = index - torch.where(first, index, 0).cummax(0).values
    place = torch.where(used & (rank < SLOTS), group * SLOTS + rank, most * SLOTS)
    keys = torch.full((most * SLOTS + 1,), _EMPTY, dtype=key.dtype, device=device)
    scores = torch.zeros(most * SLOTS + 1, dtype=score.dtype, device=device)
    keys = keys.scatter_(0, place, key)[:-1].view(most, SLOTS)
    scores = scores.scatter_(0, place, score)[:-1].view(most, SLOTS)
    head = first & used
    bucket = torch.zeros(most + 1, dtype=torch.int64, device=device)
    bucket = bucket.scatter_(0, torch.where(head, group, most), home)[:-1]
    groups = head.sum()
    bucket, keys, scores = shorten(groups, bucket, keys, scores)
    return bucket, keys, scores, groups


def _slot(address: SketchAddress, key: Tensor, home: Tensor) -> tuple[Tensor, Tensor]:
    """Flat slots ``[N]`` of keys ``[N]``, and whether the key is there."""
    found = (gather_rows(address.keys, home) == key[:, None]) & (key >= 0)[:, None]
    return home * SLOTS + found.byte().argmax(1), found.any(1)


def shorten(used: Tensor, *arrays: Tensor) -> tuple[Tensor, ...]:
    """Cut arrays of which the first ``used`` entries count, on the CPU: no device waits there."""
    if used.device.type != "cpu":
        return arrays
    length = max(1, int(used))
    return tuple(array[:length] for array in arrays)


def _first(ordered: Tensor) -> Tensor:
    """Where a new value begins in a sorted tensor ``[N]``."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    return first


def _repeat_last(length: int, used: Tensor) -> Tensor:
    """``0, 1, ..., used - 1`` and then ``used - 1`` again, to a length; zeros if none is used."""
    index = torch.arange(length, device=used.device)
    return torch.minimum(index, (used - 1).clamp(min=0))
