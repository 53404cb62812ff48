"""Which ids hold a slot: lookups are counted in training, and at intervals the best ids take over.

The rule is that of TorchRec's ``MCHManagedCollisionModule`` and its policies (zero-collision
hashing); `SlotKeeper` needs neither. Shape letters: S slots, C candidates kept, N lookups.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from featemb.parts.managed import ManagedAddress, relist, sorted_pairs

POLICIES = ("lfu", "lru", "distance_lfu")


class Admitted(NamedTuple):
    """Ids that got a slot.

    Attributes:
        slots: int64 ``[K]``.
        ids: int64 ``[K]``.
        feature: int64 ``[K]``.
    """

    slots: Tensor
    ids: Tensor
    feature: Tensor


class Candidates(NamedTuple):
    """Ids without a slot that were looked up; int64 ``[K]`` each.

    Attributes:
        feature: of each id.
        ids: the ids.
        counts: lookups.
        last: step of the last one.
    """

    feature: Tensor
    ids: Tensor
    counts: Tensor
    last: Tensor


def scores(policy: str, decay: float, step: int, counts: Tensor, last: Tensor) -> Tensor:
    """Return what ids are worth ``[K]``; the lowest lose their slots.

    ``lfu``: the lookups n. ``lru``: ``-(t - l + 1)^decay``, t the step and l that of the last
    lookup. ``distance_lfu``: ``n / (t - l + 1)^decay``.
    """
    if policy == "lfu":
        return counts
    distance = torch.pow(step - last + 1, decay)
    return -distance if policy == "lru" else counts / distance


class Keeper(nn.Module):
    """Counts the lookups of training, and decides which ids hold a slot."""

    def update(self, address: ManagedAddress, ids: Tensor, feature: Tensor) -> Admitted | None:
        """Count a step's lookups; return who got slots where it was time for a turn.

        Args:
            address: the list, which is changed.
            ids: int64 ``[N]``.
            feature: int64 ``[N]``.
        """
        raise NotImplementedError


class SlotKeeper(Keeper):
    """Counts lookups, and at every interval gives slots to the best of all ids.

    Ids with a slot and those that asked for one in the interval are ranked by their scores; the S
    best hold the slots from then on. Ids that held a slot win ties, among them the smallest
    (feature, id); of the others the more frequent one, then the smallest. The best new id takes the
    slot of the best one that loses its own. What a loser had counted is forgotten.

    Args:
        policy: "lfu", "lru" or "distance_lfu", see `scores`.
        decay: exponent of the distance.
        interval: steps between two turns.
        address: the list of the ids that hold slots, for its sizes.
        candidates: C, room for ids without a slot. When it is used up, equal ids are merged, and
            if they still take more than half of it the best half by score stays.

    Attributes:
        counts: int64 ``[S]``, lookups of the id in each slot; ``[0]`` for "lru".
        last: int64 ``[S]``, step of its last lookup; ``[0]`` for "lfu".
        waiting_ids, waiting_feature, waiting_counts, waiting_last: ``[C]``, candidates.
        clock: steps counted, and candidates waiting; int64 ``[2]``, on the CPU.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "counts": "counters",
        "last": "counters",
        "waiting_ids": "candidates",
        "waiting_feature": "candidates",
        "waiting_counts": "candidates",
        "waiting_last": "candidates",
    }
    counts: Tensor
    last: Tensor
    waiting_ids: Tensor
    waiting_feature: Tensor
    waiting_counts: Tensor
    waiting_last: Tensor

    def __init__(
        self, policy: str, decay: float, interval: int, address: ManagedAddress, candidates: int
    ) -> None:
        super().__init__()
        self.policy, self.decay, self.interval = policy, decay, interval
        self.clock = torch.zeros(2, dtype=torch.int64, device="cpu")
        slots, device = len(address.ids), address.ids.device

        def zeros(length: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(length, dtype=dtype, device=device)

        aged = policy != "lfu"
        self.register_buffer("counts", zeros(slots if policy != "lru" else 0))
        self.register_buffer("last", zeros(slots if aged else 0))
        self.register_buffer("waiting_ids", zeros(candidates, address.ids.dtype))
        self.register_buffer("waiting_feature", zeros(candidates, torch.int32))
        self.register_buffer("waiting_counts", zeros(candidates))
        self.register_buffer("waiting_last", zeros(candidates if aged else 0))

    def get_extra_state(self) -> Tensor:
        """Return ``clock``, for the state dict."""
        return self.clock

    def set_extra_state(self, state: Tensor) -> None:
        """Take ``clock`` from a state dict."""
        self.clock.copy_(state)

    @torch.no_grad()
    def update(self, address: ManagedAddress, ids: Tensor, feature: Tensor) -> Admitted | None:
        """Count a step's lookups, and take a turn where it is time (see `Keeper.update`)."""
        self.clock[0] += 1
        step = int(self.clock[0])
        ones = torch.ones_like(ids)
        found = merged(Candidates(feature, ids, ones, ones * step))
        place, listed = address.find(found.ids, found.feature)
        slot = address.slots[place[listed]].long()
        if len(self.counts):
            self.counts[slot] += found.counts[listed]
        if len(self.last):
            self.last[slot] = step
        self._wait(_chosen(found, ~listed), step)
        return self._turn(address, step) if step % self.interval == 0 else None

    def _wait(self, new: Candidates, step: int) -> None:
        """Keep distinct candidates until the next turn."""
        used, room = int(self.clock[1]), len(self.waiting_ids)
        if used + len(new.ids) <= room:
            self._store(new, used)
            return
        known = self._waiting()
        both = merged(Candidates(*map(torch.cat, zip(known, new, strict=True))))
        most = max(1, room // 2)
        if len(both.ids) > most:
            best = _by_score(self._scores(both, step))[:most].sort().values
            both = _chosen(both, best)
        self._store(both, 0)

    def _store(self, new: Candidates, start: int) -> None:
        end = start + len(new.ids)
        self.waiting_feature[start:end] = new.feature.int()
        self.waiting_ids[start:end] = new.ids.to(self.waiting_ids.dtype)
        self.waiting_counts[start:end] = new.counts
        if len(self.waiting_last):
            self.waiting_last[start:end] = new.last
        self.clock[1] = end

    def _waiting(self) -> Candidates:
        used = int(self.clock[1])
        counts = self.waiting_counts[:used]
        last = self.waiting_last[:used] if len(self.waiting_last) else counts
        feature, ids = self.waiting_feature[:used].long(), self.waiting_ids[:used].long()
        return Candidates(feature, ids, counts, last)

    def _turn(self, address: ManagedAddress, step: int) -> Admitted:
        """Rank all ids, and give the slots of those that lose them to the best of the others."""
        new = merged(self._waiting())
        new = _chosen(new, new.counts.argsort(descending=True, stable=True))
        self.clock[1] = 0
        slots, listed = len(address.ids), address.slots.long()
        held = Candidates(
            listed,
            listed,
            self.counts[listed] if len(self.counts) else listed,
            self.last[listed] if len(self.last) else listed,
        )
        order = _by_score(torch.cat([self._scores(held, step), self._scores(new, step)]))
        entering = order[:slots][order[:slots] >= slots] - slots
        leaving = order[slots:][order[slots:] < slots]
        new = _chosen(new, entering)
        taken = relist(address, leaving, new.ids, new.feature)
        if len(self.counts):
            self.counts[taken] = new.counts
        if len(self.last):
            self.last[taken] = new.last
        return Admitted(taken, new.ids, new.feature)

    def _scores(self, of: Candidates, step: int) -> Tensor:
        return scores(self.policy, self.decay, step, of.counts, of.last)


def merged(found: Candidates) -> Candidates:
    """Merge equal ids: counts are summed, the last lookup counts; ascending by (feature, id)."""
    if not len(found.ids):
        return found
    feature, ids, counts, last = _chosen(found, sorted_pairs(found.feature, found.ids))
    first = torch.ones_like(ids, dtype=torch.bool)
    first[1:] = (ids[1:] != ids[:-1]) | (feature[1:] != feature[:-1])
    group = first.cumsum(0) - 1
    number = int(group[-1]) + 1
    total = counts.new_zeros(number).index_add_(0, group, counts)
    latest = last.new_zeros(number).scatter_reduce_(0, group, last, "amax")
    return Candidates(feature[first], ids[first], total, latest)


def _chosen(found: Candidates, which: Tensor) -> Candidates:
    return Candidates(*(one[which] for one in found))


def _by_score(worth: Tensor) -> Tensor:
    return worth.argsort(descending=True, stable=True)
