"""Zero-collision hashing: ids hold a slot of their own, and lose it to better ones in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from featemb.config import register, tunable
from featemb.hashing import mix64, salts
from featemb.layer import BuildContext, FeatureEmbedding, MethodConfig, RowEmbedding
from featemb.methods.hash import Hash, default_rows, hash_blocks, share, share_rows
from featemb.parts import Concat
from featemb.parts.managed import ManagedAddress
from featemb.rows import RowTable, gather_rows, reset_rows
from featemb.schema import Schema
from featemb.slots import POLICIES, Admitted, Keeper, SlotKeeper
from featemb.watching import Watching

_INT32 = 2**31
_ENTRY = 12  # bytes of a slot in the id table: where a row is smaller, hashing is the better use
_ENGINES = ("featemb", "torchrec")
_STARTS = ("initial", "shared")
_FEW = 1024  # least room for candidates


@register
@dataclass(frozen=True, kw_only=True)
class Zch(MethodConfig):
    """The ids that matter hold a slot, a row of their own; in training better ids evict them.

    Zero-collision hashing with managed slots: the rule of TorchRec's ``MCHManagedCollisionModule``.
    ``e(f, x) = E[slot(f, x)]`` if the id holds one of the S slots, else
    ``E[S + o_f + h_f(x) mod m_f]``, one of m_f rows that a feature's ids without a slot share.

    **Whole features**: rows are shared out by the rule of `Hash`; where all ids of a feature get a
    row, they have it from the beginning. The rows of the other features, less the shared ones, are
    the S slots, for which the ids of all these features compete.

    **Turns**: each training step counts its lookups. Every ``interval`` steps the ids that hold a
    slot and those that were looked up since the last turn are ranked by ``policy``; the S best hold
    the slots from then on. With n the lookups counted, l the step of the last one, t the step:

    - ``lfu``: n;
    - ``lru``: ``-(t - l + 1)^decay``;
    - ``distance_lfu``: ``n / (t - l + 1)^decay``.

    An id that gives up its slot is forgotten; the row starts anew for its next id, from the initial
    values of that id (``start=initial``) or from the row that the id read until then
    (``start=shared``), with zero optimizer state (of the optimizers of `featemb.optim`, and of
    others given to `featemb.optim.follow`).

    An id never seen in training reads a row that its feature's ids without a slot share; in a whole
    feature its own row as initialised.

    Bytes: ``4 D rows + 8 S + 8 (F + 1) + 8``, ``12 S`` for ids of 64 bits (unbounded features, or
    cardinalities above 2^31). Training adds for each slot 8 for n and 8 for l, as the policy needs
    them, and 16 to 28 for each candidate.

    Deviations: TorchRec has slots for each table, here features share them; ids are counted when
    their gradient has come back and turns are taken after the step, not in the forward pass before
    it; candidates that do not fit are merged and the best kept, TorchRec drops the last ones.

    Attributes:
        rows: rows of the table: slots, shared rows, and those of whole features; None takes a tenth
            of the full table's.
        policy: who keeps a slot, see above.
        interval: steps between two turns.
        decay: exponent of the distance, see above.
        start: where the row of an id starts that gets a slot, see above.
        cold_share: part of the rows of features with slots that ids without one hash into; each of
            these features has one such row at least.
        candidates: most ids without a slot that are counted between two turns; None: as many as
            slots, at least 1024. With "torchrec" its own rule: what fits 1.25 times the first step.
        engine: "featemb", or "torchrec" to have TorchRec's module take the turns.
        power: exponent of the rule by which features share the rows (see `Hash`).
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "zch"
    summary: ClassVar[str] = "ids hold slots without collisions; better ids evict them in training"
    paper: ClassVar[str] = "TorchRec (managed collisions)"
    own_rows: ClassVar[str] = "gives rows to other ids while it trains"
    knob: ClassVar[str] = "rows"
    unbounded: ClassVar[bool] = True

    rows: int | None = None
    policy: str = tunable("distance_lfu", choices=POLICIES)
    interval: int = tunable(10, 1, 1000, log=True)
    decay: float = tunable(1.0, 0.1, 4.0, log=True)
    start: str = tunable("initial", choices=_STARTS)
    cold_share: float = tunable(0.1, 0.0, 0.9)
    candidates: int | None = None
    engine: str = "featemb"
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for field, words in (("policy", POLICIES), ("start", _STARTS), ("engine", _ENGINES)):
            self.require(field, f"one of {', '.join(words)}", getattr(self, field) in words)
        self.require("interval", "at least 1", self.interval >= 1)
        self.require("decay", "finite and above 0", 0 < self.decay < float("inf"))
        self.require("cold_share", "at least 0 and below 1", 0 <= self.cold_share < 1)
        room = self.candidates is None or (self.candidates >= 1 and self.engine == "featemb")
        self.require("candidates", "at least 1, or none with engine=torchrec", room)

    def at_width(self, dim: int) -> MethodConfig:
        """Return hashing of as many rows where an entry of the id table is larger than a row."""
        small = 4 * dim < _ENTRY
        return Hash(rows=self.rows, power=self.power, init=self.init) if small else self

    def smallest_knob(self, schema: Schema) -> int:
        """One row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> FeatureEmbedding:
        """Share out the rows; make table, address and what counts."""
        schema = context.schema
        rows = default_rows(self, schema)
        sizes = share(self, schema, rows)  # negative for whole features
        managed = [f for f, size in enumerate(sizes) if size > 0]
        cold, slots = self._split(schema, sizes, managed)
        self.require("rows", "such that there are below 2^31 slots", slots < _INT32)
        blocks, total = hash_blocks(context, cold)
        known = [schema.features[f].cardinality for f in managed]
        short = all(n is not None and n <= _INT32 for n in known)
        address = ManagedAddress(
            cold=blocks,
            ids=torch.zeros(
                slots, dtype=torch.int32 if short else torch.int64, device=context.device
            ),
            slots=torch.arange(slots, dtype=torch.int32, device=context.device),
            starts=torch.zeros(schema.num_features + 1, dtype=torch.int64, device=context.device),
        )
        table = context.table(slots + total, context.dim, self.init)
        init = self.init if context.init is None else context.init
        return ZchEmbedding(context, self, address, table, tuple(managed), init)

    def _split(
        self, schema: Schema, sizes: tuple[int, ...], managed: list[int]
    ) -> tuple[list[int], int]:
        """Rows of each feature outside the slots (negative if whole), and the number of slots."""
        pool = sum(sizes[f] for f in managed)
        shared = min(max(len(managed), round(pool * self.cold_share)), pool)
        limits = [schema.features[f].cardinality or pool for f in managed]
        own = share_rows(limits, shared, self.power) if managed else ()
        cold = list(sizes)
        for f, size in zip(managed, own, strict=True):
            cold[f] = size
        return cold, pool - sum(own)


class ZchEmbedding(RowEmbedding, Watching):
    """A row embedding whose ids hold slots, and lose them (see `Zch`).

    Turns are taken in ``after_step``: in a loop that does not call it, no id gets a slot. Only
    lookups in training mode through which a gradient came back are counted; eval mode, `freeze`
    and ``torch.no_grad`` change nothing.

    Attributes:
        keeper: what counts lookups and gives slots.
    """

    def __init__(
        self,
        context: BuildContext,
        config: Zch,
        address: ManagedAddress,
        table: RowTable,
        managed: tuple[int, ...],
        init: float,
    ) -> None:
        super().__init__(context, config, address=address, rows=table, combine=Concat())
        slots = len(address.ids)
        self._init, self._shared = init, config.start == "shared"
        self._managed = list(managed) if slots else []
        rule = config.policy, config.decay, config.interval
        if config.engine == "torchrec":
            from featemb.torchrec.managed import TorchRecKeeper

            self.keeper: Keeper = TorchRecKeeper(*rule, address, context.schema)
        else:
            room = max(slots, _FEW) if config.candidates is None else config.candidates
            self.keeper = SlotKeeper(*rule, address, room if slots else 0)

    @property
    def _watches(self) -> bool:
        return bool(self._managed)

    def after_step(self, step: int) -> None:
        """Count the lookups of the step; where it is time, give slots and start their rows anew."""
        seen = self._recall()
        if not seen:
            return
        address = cast(ManagedAddress, self.source.get_submodule("address"))
        weight = self.source.get_parameter("rows.weight")
        admitted = self.keeper.update(address, *seen)
        if admitted is None or not len(admitted.slots):
            return
        reset_rows(weight, admitted.slots, self._first_values(address, weight, admitted))

    @torch.no_grad()
    def _first_values(self, address: ManagedAddress, weight: Tensor, ids: Admitted) -> Tensor:
        """Return the rows ``[K, D]`` from which ids with new slots start."""
        if self._shared:
            rows = len(address.ids) + address.cold(ids.ids, ids.feature)[..., 0]
            return gather_rows(weight, rows)
        seed = address.get_buffer("cold.seed")  # it travels in the state dict
        salt = salts(seed, self.schema.num_features + weight.shape[1])
        of_feature, of_column = salt[: self.schema.num_features], salt[self.schema.num_features :]
        bits = mix64(mix64(ids.ids + of_feature[ids.feature])[:, None] ^ of_column)
        uniform = (bits >> 11).double() * 2.0**-52  # in [-1, 1)
        return (uniform * self._init).to(weight.dtype)

    def _noted(self, ids: Tensor, feature: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids of a lookup whose gradient came back, but for those of whole features."""
        managed = torch.tensor(self._managed, device=ids.device)
        if feature is None:  # [B, F]
            ids, feature = ids[:, managed], managed.expand(len(ids), -1)
        else:
            feature = feature.expand_as(ids)
            kept = torch.isin(feature, managed)
            ids, feature = ids[kept], feature[kept]
        return ids.reshape(-1), feature.reshape(-1)
