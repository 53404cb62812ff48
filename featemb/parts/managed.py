"""`ManagedAddress`: private rows for the ids in a sorted list, which training changes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.bisecting import first_not_below, take
from featemb.ids import tracing
from featemb.parts.base import Part


class ManagedAddress(Part):
    """A row of its own for each listed id, without collisions; another address for all others.

    The list is ascending by (feature, id). Feature f has ``ids[starts[f]:starts[f + 1]]``, and
    ``slots`` are their rows; behind ``starts[F]`` are the slots that are free. What is compared are
    raw ids, not hashes of them: two ids never share a slot.

    Attributes:
        cold: address of ids that are not listed, rows ``[..., 1]`` behind the S slots.
        ids: int32 or int64 ``[S]``; 0 where the slot is free.
        slots: int32 ``[S]``, each of 0 to S - 1 once.
        starts: int64 ``[F + 1]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "ids": "id table",
        "slots": "id table",
        "starts": "id table",
    }
    cold: nn.Module
    ids: Tensor
    slots: Tensor
    starts: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return rows ``[..., 1]``."""
        cold: Tensor = self.cold(ids, feature)
        if not self.ids.shape[0]:
            return cold
        place, listed = self.find(ids, feature)
        slot = take(self.slots, place).long()
        return torch.where(listed, slot, self.ids.shape[0] + cold[..., 0])[..., None]

    def find(self, ids: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of ids in the list, and whether they are there; S must not be 0."""
        stop = take(self.starts, feature.expand_as(ids) + 1)
        if ids.dim() == 2 and feature.dim() == 1 and ids.device.type == "cpu" and not tracing():
            place = self._by_column(ids, feature)
        else:
            place = self._by_steps(ids, feature.expand_as(ids), stop)
        inside = place.clamp(max=self.ids.shape[0] - 1)
        return inside, (place < stop) & (take(self.ids, inside) == ids)

    def _by_steps(self, ids: Tensor, feature: Tensor, stop: Tensor) -> Tensor:
        """Search as plain tensor operations: on every device, and in exports."""
        longest = self.ids.shape[0]
        return first_not_below(self.ids, ids, take(self.starts, feature), stop, longest)

    def _by_column(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Search ids ``[B, F]`` column by column: half the time on a CPU."""
        starts, places = self.starts.tolist(), torch.empty_like(ids)
        for column, f in enumerate(feature.tolist()):
            listed = self.ids[starts[f] : starts[f + 1]].to(ids.dtype)
            wanted = ids[:, column].contiguous()
            places[:, column] = torch.searchsorted(listed, wanted) + starts[f]
        return places


@torch.no_grad()
def relist(address: ManagedAddress, places: Tensor, ids: Tensor, feature: Tensor) -> Tensor:
    """Put other ids into places of the list, and sort it; slots stay with their places.

    Args:
        address: the list to change.
        places: int64 ``[K]``, distinct; of ids to forget or of free slots.
        ids: int64 ``[K]``, none of which is listed.
        feature: int64 ``[K]``.

    Returns:
        The slots int64 ``[K]`` that the ids have got.
    """
    slots = address.slots[places].long()
    features = len(address.starts) - 1
    owner = features_of(address)
    owner[places], address.ids[places] = feature, ids.to(address.ids.dtype)
    order = sorted_pairs(owner, address.ids)
    address.ids.copy_(address.ids[order])
    address.slots.copy_(address.slots[order])
    counts = torch.bincount(owner, minlength=features + 1)[:features]
    address.starts[1:] = counts.cumsum(0)
    return slots


def features_of(address: ManagedAddress) -> Tensor:
    """Return the feature of each place of the list, int64 ``[S]``; F where the slot is free."""
    places = torch.arange(len(address.ids), device=address.ids.device)
    return torch.searchsorted(address.starts[1:].contiguous(), places, right=True)


def sorted_pairs(feature: Tensor, ids: Tensor) -> Tensor:
    """Return the order ``[N]`` that sorts ids by feature, then by id; equal pairs keep theirs."""
    by_id = ids.argsort(stable=True)
    return by_id[feature[by_id].argsort(stable=True)]
