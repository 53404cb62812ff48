"""CCE: hashed rows whose pointers are learned by clustering between the epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from featemb.clustering import Floats, k_means, nearest
from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash, default_rows
from featemb.parts import Concat, Lookup, OffsetAddress, Source, Split
from featemb.parts.clustered import ClusteredAddress, PairSum
from featemb.parts.packed import PackedInts
from featemb.schema import Schema
from featemb.stage import Stage

_BLOCK = 1 << 16
_PER_CENTROID = 256
_SAMPLE = 1 << 18
_ROUNDING = 1e-6


@register
@dataclass(frozen=True, kw_only=True)
class CCE(MethodConfig):
    """Sums of a clustered row and a hashed row, chunk by chunk; clusters are learned.

    ``e(f, x) = concat_{i<c} (T0_{f,i}[p_f(x, i)] + T1_{f,i}[h_f(x, i) mod r_f])``, tables of r_f
    rows of ``D / c`` numbers, p stored pointers of ``ceil(log2 r_f)`` bits, h a hash at no bytes.
    Tsang and Ahle, "Clustering the Sketch: Dynamic Compression for Embedding Tables", NeurIPS 2023
    (2210.05974). The pointers begin as a hash. Between epochs, for each feature and chunk: the
    vectors of the ids as they are now are clustered by k-means into r_f centroids; p points to the
    nearest one, T0 becomes the centroids, h is drawn anew, and T1 becomes the mean of what the
    centroids leave of the ids of each bucket (0 where a bucket is empty).

    Stages: ``cluster 1 ... cluster k`` of one epoch each, k = ``clusterings``, and ``train``; a
    clustering happens before each but the first.

    A feature's share of the memory is ``b_f = min(n_f, lambda n_f^power)`` rows of width D, at
    least 1, with lambda such that all sum to ``rows``; pointers count. With ``b_f = n_f`` it is
    whole: ids have private rows. Otherwise r_f is as large as fits. Where pointers would take more
    than ``pointer_share`` of it, the feature has none: both rows are hashed into one table of
    ``floor(b_f)`` rows, and it is never clustered.

    Deviations: pointers are counted and packed; the paper's code gives every feature as many rows
    as any other and starts T1 at 0. k-means runs over at most 256 r_f ids, drawn uniformly (and
    at most the larger of 2^18 and 8 r_f), weighted by their training counts.

    An id never seen in training shares all of its rows, by its cluster and its hashes.

    Bytes: ``4 D (sum 2 r_f + whole and hashed rows) + sum n_f c ceil(log2 r_f) / 8`` and 16.

    Attributes:
        rows: memory in rows of width D, pointers included; None takes a tenth of the full table's.
        chunks: c; it must divide ``dim``.
        clusterings: k.
        pointer_share: largest part of a feature's bytes (in fp32) that its pointers may take.
        power: exponent of the rule above.
        init: sums start within ``[-sqrt(2) init, sqrt(2) init]``, with the variance of a row
            uniform in ``[-init, init]``.
    """

    name: ClassVar[str] = "cce"
    summary: ClassVar[str] = "sums of clustered and hashed rows; clusters learned between epochs"
    paper: ClassVar[str] = "Tsang and Ahle, NeurIPS 2023"
    own_rows: ClassVar[str] = "clusters its rows while it trains"
    knob: ClassVar[str] = "rows"

    rows: int | None = None
    chunks: int = tunable(4, choices=(1, 2, 4, 8))
    clusterings: int = tunable(2, 0, 4)
    pointer_share: float = tunable(0.75, 0.25, 1.0)
    power: float = tunable(0.5, 0.0, 1.0)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("chunks", "at least 1", self.chunks >= 1)
        self.require("clusterings", "at least 0", self.clusterings >= 0)
        allowed = 0 < self.pointer_share <= 1
        self.require("pointer_share", "above 0 and at most 1", allowed)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights: pointers are no smaller than single numbers."""
        if dim == 1:
            return Hash(init=self.init)
        chunks = max(n for n in range(1, self.chunks + 1) if dim % n == 0)
        return replace(self, chunks=chunks)

    def smallest_knob(self, schema: Schema) -> int:
        """One hashed row a feature."""
        return schema.num_features

    def build(self, context: BuildContext) -> ClusteredEmbedding:
        """Share out the memory; whole features get a table of their own."""
        schema, chunks = context.schema, self.chunks
        if context.dim % chunks:
            raise ConfigError(
                f"cce: chunks must divide dim, got dim={context.dim}, chunks={chunks}"
            )
        shares = share(schema.cardinalities, default_rows(self, schema), self.power)
        plans = [
            _plan(n, have, chunks / (32 * context.dim), self.pointer_share)
            for n, have in zip(schema.cardinalities, shares, strict=True)
        ]
        left = [n for n, plan in zip(schema.cardinalities, plans, strict=True) if plan is None]
        right = [n for n, plan in zip(schema.cardinalities, plans, strict=True) if plan is not None]
        source: Source | None = None
        if left:
            table = context.table(sum(left), context.dim, self.init)
            source = Lookup(address=OffsetAddress.of(left), rows=table, combine=Concat())
        if right:
            clustered = self._clustered(context, right, [plan for plan in plans if plan])
            which = tuple(int(plan is not None) for plan in plans)
            both = [source, clustered]
            source = Split(sources=both, which=which, dim=context.dim) if left else clustered
        assert source is not None
        return ClusteredEmbedding(context, self, source)

    def _clustered(
        self, context: BuildContext, limits: Sequence[int], plans: Sequence[tuple[int, bool]]
    ) -> Lookup:
        chunks = self.chunks
        ends = (0, *accumulate(size * (1 + clustered) * chunks for size, clustered in plans))
        bits = [(size - 1).bit_length() if clustered else 0 for size, clustered in plans]
        address = ClusteredAddress(
            offsets=ends[:-1],
            sizes=tuple(size for size, _ in plans),
            second=tuple(size if clustered else 0 for size, clustered in plans),
            chunks=chunks,
            pointers=PackedInts.empty([n * chunks for n in limits], bits, context.device),
            seed=context.seed_tensor(),
            round=torch.zeros((), dtype=torch.int64, device=context.device),
        )
        table = context.table(ends[-1], context.dim // chunks, self.init / 2**0.5)
        return Lookup(address=address, rows=table, combine=PairSum())


class ClusteredEmbedding(PartsEmbedding):
    """Clusters between the stages."""

    config: CCE

    def __init__(self, context: BuildContext, config: CCE, source: Source) -> None:
        super().__init__(context, config, source)
        address = self._address()
        if context.device.type == "meta" or address is None:
            return
        for _, feature, cardinality in self._features(address):
            for ids in _blocks(cardinality, context.device):
                random = address.hashed(ids, torch.tensor(feature, device=ids.device), 0)
                self._point(address, feature, int(ids[0]), random)

    def stages(self) -> tuple[Stage, ...]:
        """One epoch before each clustering, and the rest of the training."""
        address = self._address()
        if address is None or not any(address.second):
            return (Stage("train"),)
        first = [Stage(f"cluster {k + 1}", epochs=1) for k in range(self.config.clusterings)]
        return (*first, Stage("train"))

    def begin_stage(self, stage: Stage) -> None:
        """Cluster before every stage but the first."""
        if stage.name != self.stages()[0].name:
            self.cluster()

    @torch.no_grad()
    def cluster(self) -> None:
        """Cluster every feature that has pointers, and draw its hashes anew."""
        address = self._address()
        if address is None:
            return
        for number, feature, cardinality in self._features(address):
            counts = self.schema.features[number].counts
            weights = np.ones(cardinality) if counts is None else counts
            self._cluster(address, feature, weights.astype(np.float32))
        address.round += 1

    def _cluster(self, address: ClusteredAddress, feature: int, weights: Floats) -> None:
        """Cluster one feature: its pointers, then its two tables."""
        size, chunks = address.sizes[feature], address.chunks
        lookup = self._lookup()
        table = lookup.get_parameter("rows.weight")
        device, width = table.device, table.shape[1]
        which = torch.tensor(feature, device=device)
        random = np.random.default_rng([int(address.seed), int(address.round), feature])

        def vectors(ids: Tensor) -> Tensor:
            found: Tensor = lookup(ids, which).view(len(ids), chunks, width).float()
            return found

        sample = min(len(weights), size * _PER_CENTROID, max(_SAMPLE, 8 * size))
        drawn = np.sort(random.choice(len(weights), sample, replace=False))
        parts = [drawn[at : at + _BLOCK] for at in range(0, sample, _BLOCK)]
        points = torch.cat([vectors(torch.from_numpy(ids).to(device)).cpu() for ids in parts])
        centroids = [
            k_means(points[:, i].numpy().copy(), size, random, weights[drawn])
            for i in range(chunks)
        ]
        first = torch.from_numpy(np.stack(centroids, 1)).to(device)  # [r, c, C]
        rest, members = torch.zeros_like(first), torch.zeros(size, chunks, 1, device=device)
        places = torch.arange(chunks, device=device)
        for ids in _blocks(len(weights), device):
            now = vectors(ids)
            near = [nearest(now[:, i].cpu().numpy(), one) for i, one in enumerate(centroids)]
            pointer = torch.from_numpy(np.stack(near, 1)).to(device)
            bucket = address.hashed(ids, which, 1, ahead=1)
            self._point(address, feature, int(ids[0]), pointer)
            rest.index_put_((bucket, places), now - first[pointer, places], accumulate=True)
            ones = torch.ones(*bucket.shape, 1, device=device)
            members.index_put_((bucket, places), ones, accumulate=True)
        begin = address.offsets[feature]
        both = torch.stack([first, rest / members.clamp(min=1)]).view(-1, width)
        table[begin : begin + len(both)] = both.to(table)

    @staticmethod
    def _point(address: ClusteredAddress, feature: int, first: int, pointers: Tensor) -> None:
        assert isinstance(address.pointers, PackedInts)
        address.pointers.write(pointers.flatten(), feature, first * address.chunks)

    def _lookup(self) -> Lookup:
        lookup = self.source.sources[1] if isinstance(self.source, Split) else self.source
        assert isinstance(lookup, Lookup)
        return lookup

    def _address(self) -> ClusteredAddress | None:
        address = self._lookup().address
        return address if isinstance(address, ClusteredAddress) else None

    def _features(self, address: ClusteredAddress) -> Iterator[tuple[int, int, int]]:
        """Yield number, number within the address and cardinality of features with pointers."""
        sides = self.source.which if isinstance(self.source, Split) else [1] * len(self.widths)
        numbers = [f for f, clustered in enumerate(sides) if clustered]
        for feature, number in enumerate(numbers):
            if address.second[feature]:
                yield number, feature, self.schema.cardinalities[number]


def share(limits: Sequence[int], rows: int, power: float) -> tuple[float, ...]:
    """Return ``b_f = min(n_f, lambda n_f^power)``, at least 1, that sum to at most ``rows``.

    Fractions are kept, so that no feature's share falls as ``rows`` grows.
    """
    if rows >= sum(limits):
        return tuple(map(float, limits))

    def at(scale: float) -> list[float]:
        return [min(float(n), max(1.0, scale * n**power)) for n in limits]

    low, high = 0.0, float(rows)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= rows else (low, middle)
    return tuple(at(low))


def _plan(
    cardinality: int, have: float, per_bit: float, pointer_share: float
) -> tuple[int, bool] | None:
    """Choose a feature's form.

    Args:
        cardinality: n.
        have: b, rows that the feature may take.
        per_bit: rows that one bit of every chunk's pointer takes, for one id.
        pointer_share: largest share of the pointers.

    Returns:
        None for a whole feature, else its size, and whether it has pointers.
    """
    have += _ROUNDING
    if have >= cardinality:
        return None
    least = best = 0.0
    for bits in range(1, 32):
        pointers, smallest, largest = cardinality * bits * per_bit, 2 ** (bits - 1) + 1, 2**bits
        needed = max(smallest, -(-pointers * (1 - pointer_share) // (2 * pointer_share)))
        if not least and needed <= largest:
            least = 2 * needed + pointers
        fits = min(largest, (have - pointers) // 2)
        best = max(best, fits) if fits >= smallest else best
    if not least or have < least or not best:
        return max(1, int(have)), False
    return int(best), True


def _blocks(cardinality: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all ids of a feature, so many at once that packed integers are written by words."""
    for first in range(0, cardinality, _BLOCK):
        yield torch.arange(first, min(first + _BLOCK, cardinality), device=device)
