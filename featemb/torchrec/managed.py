"""`TorchRecKeeper`: TorchRec's ``MCHManagedCollisionModule`` decides which ids hold a slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featemb.errors import IdError
from featemb.parts.managed import ManagedAddress
from featemb.schema import Schema
from featemb.slots import Admitted, Keeper
from featemb.torchrec.rows import require_torchrec

_LARGEST = 2**63 - 1
_TABLE = "table"
_PARTS = {
    "_mch_sorted_raw_ids": "id table",
    "_mch_remapped_ids_mapping": "id table",
    "_mch_slots": "id table",
    "_delimiter": "id table",
    "_output_segments_tensor": "id table",
    "_current_iter_tensor": "counters",
    "_mch_counts": "counters",
    "_mch_last_access_iter": "counters",
    "_history_accumulator": "candidates",
    "_history_last_access_iter": "candidates",
}


class TorchRecKeeper(Keeper):
    """Profiles ids in a ``MCHManagedCollisionModule``, and takes its id table over at every turn.

    The module knows one number for each (feature, id), ascending in this order where all features
    are bounded: ``first_f + id``. Otherwise it is ``id F + f``, so that ids up to ``2^63 / F`` can
    be told apart; a larger one is an error. Its last slot is never given away, so it has S + 1.

    Args:
        policy: "lfu", "lru" or "distance_lfu".
        decay: the policy's ``decay_exponent``.
        interval: the module's ``eviction_interval``, in steps.
        address: the list of the ids that hold slots: what training and serving read.
        schema: the features.

    Attributes:
        module: the ``MCHManagedCollisionModule``. Its history, which TorchRec does not save, is a
            part of this module's extra state.

    Raises:
        ConfigError: TorchRec is missing.
    """

    def __init__(
        self, policy: str, decay: float, interval: int, address: ManagedAddress, schema: Schema
    ) -> None:
        require_torchrec()
        from torchrec.modules import mc_modules

        super().__init__()
        policies: Mapping[str, Any] = {
            "lfu": mc_modules.LFU_EvictionPolicy,
            "lru": mc_modules.LRU_EvictionPolicy,
            "distance_lfu": mc_modules.DistanceLFU_EvictionPolicy,
        }
        settings = {} if policy == "lfu" else {"decay_exponent": decay}
        self.names, self.features = schema.names, schema.num_features
        sizes = [f.cardinality or _LARGEST for f in schema.features]
        firsts = [sum(sizes[:f]) for f in range(self.features + 1)]
        self.firsts = tuple(firsts) if firsts[-1] < _LARGEST else ()
        self.module: Any = mc_modules.MCHManagedCollisionModule(
            zch_size=len(address.ids) + 1,
            device=address.ids.device,
            eviction_policy=policies[policy](**settings),
            eviction_interval=interval,
        )
        self.module.memory_parts = _PARTS
        empty = torch.zeros(0, dtype=torch.int64, device=address.ids.device)
        self.module.register_buffer("_history_accumulator", empty, persistent=False)

    def get_extra_state(self) -> Tensor:
        """Return what the module keeps outside of its state dict: int64 ``[5 + history]``."""
        mch = self.module
        used = mch._current_history_buffer_offset
        numbers = [
            mch._current_iter,
            mch._last_eviction_iter,
            mch._input_history_buffer_size,
            used,
            len(mch._history_metadata),
        ]
        history = [mch._history_accumulator, *self._metadata("_history_").values()]
        return torch.cat([torch.tensor(numbers), *(one[:used].cpu() for one in history)])

    def set_extra_state(self, state: Tensor) -> None:
        """Take it from a state dict."""
        mch = self.module
        mch._current_iter, mch._last_eviction_iter, size, used, kinds = state[:5].tolist()
        mch._input_history_buffer_size, mch._current_history_buffer_offset = size, used
        device = mch._mch_sorted_raw_ids.device
        history = [torch.zeros(max(0, size), dtype=torch.int64, device=device)]
        history += [torch.zeros_like(history[0]) for _ in range(kinds)]
        for number, one in enumerate(history):
            one[:used] = state[5 + number * used : 5 + (number + 1) * used].to(device)
        mch._history_accumulator = history[0]
        mch._history_metadata = {}
        for info, one in zip(self._infos("is_history_metadata"), history[1:], strict=False):
            mch.register_buffer(f"_history_{info}", one, persistent=False)
            mch._history_metadata[info] = one

    @torch.no_grad()
    def update(self, address: ManagedAddress, ids: Tensor, feature: Tensor) -> Admitted | None:
        """Profile a step's lookups in the module (see `Keeper.update`).

        Raises:
            IdError: an id is too large to be told apart from those of other features.
        """
        from torchrec.sparse.jagged_tensor import JaggedTensor

        mch = self.module
        mch._device = mch._mch_sorted_raw_ids.device  # its own is that of its making
        mch._mch_metadata = self._metadata("_mch_")
        if mch._history_metadata:
            mch._history_metadata = self._metadata("_history_")
        keys = self._keys(ids, feature)
        lengths = torch.ones_like(keys)
        before = mch._mch_sorted_raw_ids.clone()
        mch.train()
        mch.profile({_TABLE: JaggedTensor(values=keys, lengths=lengths)})
        return None if mch.evict() is None else self._take(address, before)

    def _metadata(self, kind: str) -> dict[str, Tensor]:
        """Return the module's buffers of a kind as they are now: moving it makes new ones."""
        wanted = "is_mch_metadata" if kind == "_mch_" else "is_history_metadata"
        buffers = dict(self.module.named_buffers(recurse=False))
        names = self._infos(wanted)
        return {name: buffers[kind + name] for name in names if kind + name in buffers}

    def _infos(self, wanted: str) -> list[str]:
        infos = self.module._eviction_policy.metadata_info
        return [one.metadata_name for one in infos if getattr(one, wanted)]

    def _keys(self, ids: Tensor, feature: Tensor) -> Tensor:
        if self.firsts:
            return ids + torch.tensor(self.firsts, device=ids.device)[feature]
        most = (_LARGEST - self.features) // self.features
        wrong = (ids > most).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise IdError(
                f"feature {self.names[int(feature[at])]!r}: id {int(ids[at])} is out of range of "
                f"zch(engine=torchrec) with {self.features} features (0 <= id <= {most}); "
                "engine=featemb takes any id"
            )
        return ids * self.features + feature

    def _take(self, address: ManagedAddress, before: Tensor) -> Admitted:
        """Bring the list to what the module holds; return the ids that are new in it."""
        mch, number = self.module, len(address.ids)
        keys = mch._mch_sorted_raw_ids[:number]
        live = keys < _LARGEST
        if self.firsts:
            firsts = torch.tensor(self.firsts, device=keys.device)
            feature = torch.searchsorted(firsts[1:].contiguous(), keys, right=True)
            ids = keys - firsts[feature.clamp(max=self.features - 1)]
        else:
            feature, ids = keys % self.features, keys // self.features
        feature = torch.where(live, feature, self.features)
        ids = torch.where(live, ids, 0)
        slots = mch._mch_remapped_ids_mapping[:number]
        order = feature.argsort(stable=True)
        address.ids.copy_(ids[order])
        address.slots.copy_(slots[order])
        counts = torch.bincount(feature, minlength=self.features + 1)[: self.features]
        address.starts[1:] = counts.cumsum(0)
        new = live & ~torch.isin(keys, before)
        return Admitted(slots[new], ids[new], feature[new])
