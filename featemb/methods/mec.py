"""MEC: a table is trained, its rows are quantised to codes, and the codewords are trained again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec, check_finite
from featemb.codecs.pq import blocks, codewords, in_range, nearest_codes, seeded
from featemb.config import register, tunable
from featemb.frozen import FrozenEmbedding
from featemb.hashing import mix64_int
from featemb.layer import Axis, BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.parts.base import Part
from featemb.parts.coded import CodedAddress, CodewordRows
from featemb.parts.packed import PackedCodes
from featemb.rows import RowTable
from featemb.schema import Feature
from featemb.stage import Stage

_CODEWORDS = 256
_CODES = "source.address.codes.words"
_TABLE = "source.rows.weight"


@register
@dataclass(frozen=True, kw_only=True)
class MEC(MethodConfig):
    """The plain table is trained; its rows become codes, and their codewords are trained further.

    ``e(f, x) = [B_f1[c_1(x)] ... B_fM[c_M(x)]]``: M parts side by side, each of D / M numbers, and
    for each a codebook ``[K, D / M]`` of the feature and a stored code of ``ceil(log2 K)`` bits of
    the id. Wang et al., "A Universal Framework for Compressing Embeddings in CTR Prediction",
    DASFAA 2025 (2502.15355).

    Stages: ``train``, the full table; ``retrain``, which begins by computing the codes of all rows,
    by k-means of every part of every feature (`featemb.lloyd`), in which ids weigh by their
    training counts where these are known. The codes are fixed from then on; codewords and network
    are trained. Until then the layer trains and holds the full table, and eval mode scores it;
    `freeze` codes a copy, so that serving bytes are always those of codes and codebooks.

    A feature of at most ``cutoff`` ids is whole, with private rows, and so is one whose codes and
    codebooks would take no fewer bytes than its rows. M is the largest divisor of D that is at most
    ``parts``. The rows have a format of their own: the codec of `freeze` does not matter.

    Deviations: k-means in place of the product-quantising autoencoder, whose published encoder
    gets no gradient and so is a random projection, and none of its terms that even out codes. The
    network is trained on by default, from the centroids; the paper's retraining from scratch is
    ``start=initial, rewind=true``. The cut-off is far lower (theirs is 100,000), and the budget
    chooses K.

    An id never seen in training reads the codewords nearest to its initial values: since those are
    small, mostly those of ids that were hardly trained.

    Bytes: of a coded feature ``n M ceil(log2 K) / 8 + 4 K D`` with ``K = min(codewords, n)``, of
    the others ``4 n D``. In training those of the full table, and of codes and codebooks after it.

    Attributes:
        codewords: K; None takes 256.
        parts: M, see above.
        cutoff: most ids of a feature that stays whole whatever its bytes.
        weights: weight of an id in the k-means: the logarithm of its count to base 2, rounded down
            and at least 1, as in the published code ("log"); its count ("counts"); or the same for
            all ("equal").
        start: codewords start at the "centroids" of the rows that they replace, or at new "initial"
            values.
        rewind: whether the network goes back to its start before ``retrain``.
        init: rows start uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "mec"
    summary: ClassVar[str] = "full table in training; rows become codes, codewords are retrained"
    paper: ClassVar[str] = "Wang et al., DASFAA 2025"
    axis: ClassVar[Axis] = "format"
    knob: ClassVar[str] = "codewords"

    codewords: int | None = None
    parts: int = tunable(4, choices=(1, 2, 4, 8))
    cutoff: int = tunable(100, choices=(0, 100, 1000))
    weights: str = tunable("log", choices=("log", "counts", "equal"))
    start: str = tunable("centroids", choices=("centroids", "initial"))
    rewind: bool = tunable(False, choices=(False, True))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("parts", "at least 1", self.parts >= 1)
        self.require("cutoff", "at least 0", self.cutoff >= 0)
        known = self.weights in ("counts", "log", "equal")
        self.require("weights", "'counts', 'log' or 'equal'", known)
        known = self.start in ("centroids", "initial")
        self.require("start", "'centroids' or 'initial'", known)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: at strong ratios a code has no bit left for a single number."""
        return self if dim > 1 else Hash(init=self.init)

    def build(self, context: BuildContext) -> MECEmbedding:
        """Make the full table."""
        return MECEmbedding(context, self)


class MECEmbedding(PartsEmbedding):
    """A full table until its rows are coded; codes and codebooks from then on.

    Attributes:
        draw: int64 scalar, seed of the codewords' initial values; only with ``start=initial``.
    """

    memory_parts: ClassVar[dict[str, str]] = {"draw": "seeds"}
    config: MEC

    def __init__(self, context: BuildContext, config: MEC) -> None:
        sizes = context.schema.cardinalities
        table = context.table(sum(sizes), context.dim, config.init)
        super().__init__(context, config, _full(sizes, table))
        self.init = config.init if context.init is None else context.init
        self.parts = next(m for m in range(config.parts, 0, -1) if context.dim % m == 0)
        self.sizes = tuple(self._size(feature) for feature in context.schema.features)
        if config.start == "initial":
            seed = mix64_int(context.seed + 1) >> 1
            self.register_buffer("draw", torch.tensor(seed, device=context.device))

    def _size(self, feature: Feature) -> int:
        """K of a feature, or 0 where it is whole."""
        n, dim = feature.cardinality or 0, self.dim
        size = min(self.config.codewords or _CODEWORDS, n)
        coded = 4 * -(-n * self.parts * (size - 1).bit_length() // 32) + 4 * size * dim
        return size if n > self.config.cutoff and coded < 4 * n * dim else 0

    @property
    def coded(self) -> bool:
        """Whether the rows have been coded."""
        return isinstance(self.source.get_submodule("address"), CodedAddress)

    @property
    def architecture(self) -> tuple[str, ...]:  # type: ignore[override]  # grows with the form
        """All that the layer has: a rewind is for the network."""
        return tuple(name for name, _ in (*self.named_parameters(), *self.named_buffers()))

    def stages(self) -> tuple[Stage, ...]:
        """The full table, then the codewords."""
        if not any(self.sizes):
            return (Stage("train"),)
        return (
            Stage("train"),
            Stage("retrain", weights="initial" if self.config.rewind else "keep"),
        )

    def begin_stage(self, stage: Stage) -> None:
        """Code the rows before the second stage."""
        if stage.name != "retrain" or self.coded:
            return
        with torch.no_grad():
            self.source = self._made().train(self.training)
            if self.config.start == "initial":
                weight = self.source.get_parameter("rows.weight")
                generator = torch.Generator().manual_seed(int(self.get_buffer("draw")))
                drawn = torch.empty(weight.shape).uniform_(generator=generator)
                weight.copy_((2 * drawn - 1) * self.init)

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        source = self.source if self.coded or not any(self.sizes) else self._made()
        address, rows = source.get_submodule("address"), source.get_parameter("rows.weight")
        assert isinstance(address, Part)
        frozen = Lookup(
            address=address.frozen(codec),
            rows=CodewordRows(weight=rows.detach().clone()),
            combine=Concat(),
        )
        return FrozenEmbedding(self.schema, self.dim, self.widths, frozen)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the form, full or coded, that a state dict has."""
        coded = prefix + _CODES in state_dict
        if coded != self.coded and prefix + _TABLE in state_dict:
            device = self.source.get_parameter("rows.weight").device
            if coded:
                source = self._empty(device)
            else:
                rows = torch.empty(sum(self.schema.cardinalities), self.dim, device=device)
                source = _full(self.schema.cardinalities, _table(rows))
            self.source = source.train(self.training)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _made(self) -> Lookup:
        """Return the coded form of the full table; on the meta device, its shapes."""
        table = self.source.get_parameter("rows.weight").detach()
        source = self._empty(table.device)
        if table.is_meta:
            return source
        check_finite(table)
        address, weight = source.get_submodule("address"), source.get_parameter("rows.weight")
        assert isinstance(address, CodedAddress)
        assert isinstance(address.codes, PackedCodes)
        rows = torch.split(table, list(self.schema.cardinalities))
        for number, (size, first) in enumerate(zip(self.sizes, address.offsets, strict=True)):
            if size:
                book = self._code(number, rows[number], address.codes)
            else:
                book = rows[number].reshape(-1, weight.shape[1])
            weight[first : first + len(book)] = book
        return source

    def _code(self, number: int, rows: Tensor, codes: PackedCodes) -> Tensor:
        """Write the codes of a feature's rows ``[n, D]``; return its codebooks ``[M K, D / M]``."""
        size, widths = self.sizes[number], (self.dim // self.parts,) * self.parts
        scaled, scale = in_range(rows)
        book = codewords(scaled, widths, size, self._weights(number), seeded())
        for first, some in blocks(scaled):
            found = nearest_codes(some, book, widths)
            codes.write(found.flatten(), number, first * self.parts)
        # [K, M, D / M] to [M, K, D / M]
        return (book * scale).view(size, self.parts, -1).transpose(0, 1).reshape(-1, widths[0])

    def _weights(self, number: int) -> Tensor | None:
        """Return the weights of a feature's ids float64 ``[n]``, or None for equal ones."""
        counts = self.schema.features[number].counts
        if counts is None or self.config.weights == "equal":
            return None
        weights = torch.tensor(counts, dtype=torch.float64)
        return weights if self.config.weights == "counts" else weights.log2().floor().clamp(min=1)

    def _empty(self, device: torch.device) -> Lookup:
        """Return the coded form without values: all codes 0, rows unset."""
        features = list(zip(self.schema.cardinalities, self.sizes, strict=True))
        lengths = [(size or n) * self.parts for n, size in features]
        offsets = (0, *accumulate(lengths))
        codes = PackedCodes.empty(
            [n * self.parts if size else 0 for n, size in features],
            [max(0, size - 1).bit_length() for size in self.sizes],
            device,
        )
        rows = torch.empty(offsets[-1], self.dim // self.parts, device=device)
        return Lookup(
            address=CodedAddress(
                offsets=offsets[:-1], sizes=self.sizes, parts=self.parts, codes=codes
            ),
            rows=_table(rows),
            combine=Concat(),
        )


def _full(cardinalities: Sequence[int], table: RowTable) -> Lookup:
    return Lookup(address=OffsetAddress.of(cardinalities), rows=table, combine=Concat())


def _table(rows: Tensor) -> RowTable:
    with torch.device("meta"):
        table = RowTable(rows.shape[0], rows.shape[1], init=0.0, generator=None)
    table.weight = nn.Parameter(rows)
    return table
