"""Mixed-precision embeddings: a learned bit width for each group of equally frequent ids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.bitwidths import fit_bits
from featemb.codecs.base import Codec
from featemb.config import register, tunable
from featemb.errors import BudgetError
from featemb.frozen import FrozenEmbedding
from featemb.layer import Axis, BuildContext, MethodConfig
from featemb.memory import module_bytes
from featemb.parts import Concat, Lookup
from featemb.parts.mixed import MixedRows, group_sizes
from featemb.ranking import Ranking
from featemb.stage import Stage
from featemb.staging import StagedEmbedding

_FEWEST_ROWS = 64


@register
@dataclass(frozen=True, kw_only=True)
class MPE(MethodConfig):
    """Ids in groups of equal frequency; a group's numbers take 0 to 6 bits, as it learns.

    Mixed-precision embeddings (arXiv 2409.20305, 2024). All ids, of all features, are sorted by
    frequency and cut into ``groups`` groups of equal size. Stage ``search`` trains
    ``e = sum_b softmax(gamma_g / tau)_b Q_b(w)`` with LSQ+ quantisers ``Q_b`` (`MixedRows`): a step
    alpha_b a bit width for the whole table, an offset beta a column. Then each group gets one
    width, and stage ``retrain`` trains rows from their initial values with the network, alpha and
    beta kept.

    Two modes. ``faithful`` trains with the penalty
    ``strength sum_g (cnt_min / cnt_g) sum_b p_{g,b} b`` and takes the largest width whose
    probability is at least 1 / (2 (B + 1)); its size follows from that, and a limit is applied to
    the result alone. ``budget`` (the default) adapts the strength while it searches, so that the
    expected bytes go to the limit, and then moves single bits, those worth least first, until the
    widths use the limit (`featemb.bitwidths.fit_bits`).

    Deviations: initial rows are uniform; alpha_b is its start times a trained scale, at the rows'
    learning rate, so that steps of all sizes move at one relative rate; in budget mode gamma has a
    larger temperature, since with 0.003 Adam's first steps decide.

    An id never seen in training has its group's width and its initial row: in rare groups, few bits
    or zeros.

    Bytes: ``sum_g 4 ceil(n_g D b_g / 32) + 24 + 4 D`` and, with several features, the bounds of the
    groups, ``4 F (G + 1)``; ``N ceil(log2 N) / 8`` instead where ids are not numbered by frequency.
    The format is the method's own: ``freeze`` ignores its codec.

    Attributes:
        limit: serving bytes; None takes a tenth of the full table's, or what mode "faithful" finds.
        mode: "budget" or "faithful".
        groups: G at most; groups have at least 64 rows.
        bits: B, the largest width.
        strength: of the penalty; in budget mode, of its adaptation.
        temperature: tau; None is 0.003 in mode "faithful", and 0.3 else.
        retrain: "initial" or "continue": which rows the last stage begins with.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "mpe"
    summary: ClassVar[str] = "a learned bit width, 0 to 6, for each group of equally frequent ids"
    paper: ClassVar[str] = "arXiv 2409.20305, 2024"
    axis: ClassVar[Axis] = "format"
    own_rows: ClassVar[str] = "has a row format of its own"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    mode: str = "budget"
    groups: int = tunable(128, 16, 512, log=True)
    bits: int = tunable(6, 4, 8)
    strength: float = tunable(0.1, 1e-3, 1.0, log=True)
    temperature: float | None = tunable(None, choices=(None, 0.03, 0.1, 0.3, 1.0))
    retrain: str = tunable("initial", choices=("initial", "continue"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("mode", "'budget' or 'faithful'", self.mode in ("budget", "faithful"))
        self.require("retrain", "'initial' or 'continue'", self.retrain in ("initial", "continue"))
        self.require("groups", "at least 1", self.groups >= 1)
        self.require("bits", "1 to 8", 1 <= self.bits <= 8)
        self.require("strength", "at least 0 and finite", 0 <= self.strength < math.inf)
        tau = self.temperature
        self.require("temperature", "above 0", tau is None or 0 < tau < math.inf)

    def build(self, context: BuildContext) -> MPEEmbedding:
        """Make the table, its quantisers and its first bit widths."""
        return MPEEmbedding(context, self)

    def group_size(self, rows: int) -> int:
        """Return the rows of a group."""
        return max(-(-rows // self.groups), min(rows, _FEWEST_ROWS))


class MPEEmbedding(StagedEmbedding):
    """Rows of mixed bit widths (see `MPE`).

    Attributes:
        pressure: fp32 scalar, the strength of the penalty as it is adapted.
        rarity: fp32 ``[G]``, cnt_min / cnt_g, from the schema.
    """

    smooth = False
    architecture = ("source.rows.bits",)
    memory_parts: ClassVar[dict[str, str]] = {"pressure": "counters", "rarity": "counters"}
    config: MPE
    pressure: Tensor
    rarity: Tensor

    def __init__(self, context: BuildContext, config: MPE) -> None:
        schema, device, dim = context.schema, context.device, context.dim
        total = sum(schema.cardinalities)
        size = config.group_size(total)
        sizes = group_sizes(total, size)
        init = config.init if context.init is None else context.init
        tau = config.temperature or (0.003 if config.mode == "faithful" else 0.3)
        mixed = MixedRows(
            rows=context.table(total, dim, config.init),
            scales=nn.Parameter(torch.ones(config.bits, device=device)),
            offset=nn.Parameter(torch.zeros(dim, device=device)),
            logits=nn.Parameter(torch.zeros(len(sizes), config.bits + 1, device=device)),
            bits=torch.zeros(len(sizes), dtype=torch.int64, device=device),
            size=size,
            # twice the mean magnitude, which is half of init, over sqrt(2^(b-1))
            first=tuple(max(init, 1e-8) / 2 ** (bit / 2) for bit in range(config.bits)),
            temperature=tau,
        )
        ranking = Ranking.of(schema, size)
        address = ranking.address(device)
        super().__init__(context, config, Lookup(address=address, rows=mixed, combine=Concat()))
        self.sizes, self.init = sizes, init
        shares = ranking.shares()
        self.register_buffer("rarity", _rarity(shares).to(device), persistent=False)
        self.register_buffer("pressure", torch.tensor(self._start_pressure(), device=device))
        self._shares = shares.tolist()
        self._set(self._first_bits())

    @property
    def mixed(self) -> MixedRows:
        """The part that holds the table and its quantisers."""
        part = self.source.get_submodule("rows")
        assert isinstance(part, MixedRows)
        return part

    @property
    def settled(self) -> bool:
        """Whether the bit widths are final."""
        return self.stage == "retrain"

    def _start_pressure(self) -> float:
        return self.config.strength if self.config.mode == "faithful" else 0.0

    def _code_limit(self) -> int:
        """Return the bytes that codes may take."""
        limit = self.config.limit
        others = self._other_bytes()
        if limit is None:
            return max(self.schema.full_bytes(self.dim) // 10, others) - others
        return limit - others

    def _other_bytes(self) -> int:
        address = sum(module_bytes(self.source.get_submodule("address")).values())
        return address + 4 * (self.config.bits + self.dim)

    def _fitted(self, wanted: list[int]) -> tuple[int, ...]:
        try:
            return fit_bits(
                wanted, self._shares, self.sizes, self.dim, self._code_limit(), self.config.bits
            )
        except BudgetError as error:
            floor = self._other_bytes()
            raise BudgetError(f"mpe at width {self.dim} needs {floor:,} bytes", floor) from error

    def _first_bits(self) -> tuple[int, ...]:
        """Return bit widths for a layer that is not trained yet, by frequency alone."""
        if self._unlimited:
            return (self.config.bits,) * len(self.sizes)
        return self._fitted([0] * len(self.sizes))

    @property
    def _unlimited(self) -> bool:
        return self.config.mode == "faithful" and self.config.limit is None

    @torch.no_grad()
    def decide(self) -> None:
        """Set the bit widths that the probabilities of the moment give."""
        share = self.mixed.probabilities()
        if share.is_meta:
            return
        likely = share >= 1 / (2 * share.shape[1])
        widths = torch.arange(share.shape[1], device=share.device)
        wanted = torch.where(likely, widths, 0).amax(1).tolist()
        self._set(tuple(wanted) if self._unlimited else self._fitted(wanted))

    def _set(self, bits: tuple[int, ...]) -> None:
        mixed = self.mixed
        if not mixed.bits.is_meta:
            mixed.bits.copy_(torch.tensor(bits))
        mixed.known_bits = bits  # type: ignore[misc]  # hides the default

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the bit widths that a state dict has."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        bits = state_dict.get(f"{prefix}source.rows.bits")
        if bits is not None and not bits.is_meta:
            self.mixed.known_bits = tuple(bits.tolist())  # type: ignore[misc]

    def stages(self) -> tuple[Stage, ...]:
        """The search of bit widths, then training with them."""
        return (Stage("search"), Stage("retrain"))

    def begin_stage(self, stage: Stage) -> None:
        """Fix the widths before the last stage, and take the rows back to their start."""
        if stage.name == "retrain":
            self.decide()
            if self.config.retrain == "initial":
                self._redraw()
        super().begin_stage(stage)

    @torch.no_grad()
    def _redraw(self) -> None:
        weight = self.mixed.rows.get_parameter("weight")
        if weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.empty(weight.shape).uniform_(-self.init, self.init, generator=generator)
        weight.copy_(start)

    def entered(self) -> None:
        """Mix the widths in training until they are final."""
        self.mixed.searching = not self.settled  # type: ignore[misc]  # hides the default

    def train(self, mode: bool = True) -> MPEEmbedding:
        """Set the mode; going into eval mode decides the bit widths unless they are final."""
        super().train(mode)
        if not mode and not self.settled and self.stage:
            self.decide()
        return self

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The rows; quantisers and gates apart, without weight decay; gates only in the search."""
        mixed = self.mixed
        offset = {"params": [mixed.offset], "lr": lr * self.init, "weight_decay": 0.0}
        others = [mixed.scales] if self.settled else [mixed.scales, mixed.logits]
        groups: list[dict[str, Any]] = [
            {"params": [mixed.rows.get_parameter("weight")], "lr": lr},
            {"params": others, "lr": lr, "weight_decay": 0.0},
            offset,
        ]
        return groups

    def penalty(self) -> Tensor:
        """Return the weighted expected bit widths, while they are searched."""
        if self.settled:
            return super().penalty()
        share = self.mixed.probabilities()
        expected = share @ torch.arange(share.shape[1], device=share.device, dtype=share.dtype)
        total: Tensor = self.pressure.to(share.dtype) * (self.rarity * expected).sum()
        return total

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Adapt the penalty's strength to the limit, while widths are searched."""
        if self.settled or self.config.mode == "faithful":
            return
        share = self.mixed.probabilities()
        expected = share @ torch.arange(share.shape[1], device=share.device, dtype=share.dtype)
        sizes = torch.tensor(self.sizes, device=share.device, dtype=share.dtype)
        used = (expected * sizes).sum() * self.dim / 8
        surplus = used / max(1, self._code_limit()) - 1
        rate = self.config.strength / len(self.sizes)
        self.pressure.add_(rate * surplus.clamp(-1, 1)).clamp_(min=0)

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        if self.training and not self.settled and self.stage:
            self.decide()
        return super()._freeze(codec)


def _rarity(shares: Tensor) -> Tensor:
    """Return ``cnt_min / cnt_g`` of groups; one that is never read is like the rarest that is."""
    read = shares[shares > 0]
    least = read.amin() if len(read) else shares.new_ones(())
    rare = shares.clamp(min=least).reciprocal()
    return rare / rare.max()
