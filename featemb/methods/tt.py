"""TT-Rec: every table as a product of small tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import ClassVar

from featemb.config import register, tunable
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.qr import balanced
from featemb.parts import Concat, DigitAddress, Lookup, OffsetAddress, Source, Split
from featemb.parts.hot import hot_rank
from featemb.parts.tensor_train import HotLookup, TensorTrain
from featemb.schema import Schema


@register
@dataclass(frozen=True, kw_only=True)
class TT(MethodConfig):
    """Each feature's table is a tensor train: an id's vector is a product of K matrices.

    Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys
    2021 (2101.11714). With ``n_f <= p_1 ... p_K`` and ``dim = q_1 ... q_K``, an id's digits i_k
    (i_1 the least significant) and a column's digits j_k (j_1 the most significant),
    ``e(f, x)[j] = G_1[i_1, :, j_1, :] ... G_K[i_K, :, j_K, :]``, core ``G_k`` of shape
    ``[p_k, r_{k-1}, q_k, r_k]``, ``r_0 = r_K = 1`` and rank r between. Ids that share a digit share
    its slice.

    ``p_k`` are near ``n_f^(1/K)`` and the q_k balanced, the largest last: dim 16 is 2 x 2 x 4. A
    feature whose cores would be no smaller than its table is whole. All features have one rank.

    Initial values: cores are uniform in ``[-a, a]`` with a such that materialised vectors have the
    standard deviation of the dense table, ``init / sqrt(3)``, at any rank:
    ``a^2 / 3 = (init^2 / (3 r^(K-1)))^(1/K)``.

    ``cache`` gives the most frequent ids of the compressed features private rows in place of the
    product. Which ids they are is known from the start (see `featemb.frequency`).

    An id never seen in training gets the product of its digits' slices, which other ids have
    trained; in a whole feature its own row as initialised.

    Bytes: ``4 sum_f min(n_f D, sum_k p_{f,k} r_{k-1} q_k r_k)``, and with a cache ``4 D cache``
    beside the bytes that find its ids.

    Deviations: uniform initial values replace normal ones without their middle, whose scale
    ignores the rank (vectors start hundreds of times too large at rank 50); the least significant
    digit comes first; the cache is chosen by training counts, once, where the authors fill it
    after some steps by the counts so far.

    Attributes:
        rank: r; None takes the cores to a tenth of the full table's numbers.
        cores: K, 2 to 4.
        cache: number of ids with private rows.
        init: vectors start with the standard deviation of uniform numbers in ``[-init, init]``.
    """

    name: ClassVar[str] = "tt"
    summary: ClassVar[str] = "tensor train: a vector is a product of small matrices"
    paper: ClassVar[str] = "Yin et al., MLSys 2021"
    knob: ClassVar[str] = "rank"

    rank: int | None = None
    cores: int = tunable(3, 2, 4)
    cache: int = tunable(0, choices=(0, 100, 1000, 10_000))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("cores", "2, 3 or 4", self.cores in (2, 3, 4))
        self.require("cache", "at least 0", self.cache >= 0)
        self.require("init", "above 0, cores of zeros never learn", self.init > 0)

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Choose the shapes, and make cores and whole tables."""
        schema, dim = context.schema, context.dim
        rank = self._default_rank(schema, dim) if self.rank is None else self.rank
        factors = balanced_factors(dim, self.cores)
        sizes = [
            (n * dim, train_size(row_factors(n, self.cores), factors, rank))
            for n in schema.cardinalities
        ]
        whole = tuple(int(full <= cost) for full, cost in sizes)
        if all(whole):
            return PartsEmbedding(context, self, whole_tables(context, self.init))
        trains = self._trains(context.only([not one for one in whole]), factors, rank)
        if not any(whole):
            return PartsEmbedding(context, self, trains)
        tables = whole_tables(context.only([bool(one) for one in whole]), self.init)
        split = Split(sources=[trains, tables], which=whole, dim=context.dim)
        return PartsEmbedding(context, self, split)

    def _default_rank(self, schema: Schema, dim: int) -> int:
        """Largest rank within a tenth of the full table's numbers, at least 1."""
        factors = balanced_factors(dim, self.cores)
        shapes = [(n * dim, row_factors(n, self.cores)) for n in schema.cardinalities]

        def fits(rank: int) -> bool:
            sizes = (min(full, train_size(shape, factors, rank)) for full, shape in shapes)
            return 10 * sum(sizes) <= dim * sum(schema.cardinalities)

        return largest(fits)

    def _trains(self, context: BuildContext, factors: tuple[int, ...], rank: int) -> Source:
        cardinalities = context.schema.cardinalities
        by_core = list(zip(*(row_factors(n, self.cores) for n in cardinalities), strict=True))
        strides = [
            [prod(row_factors(n, self.cores)[:k]) for n in cardinalities] for k in range(self.cores)
        ]
        address = DigitAddress(
            offsets=tuple((0, *accumulate(rows))[:-1] for rows in by_core),
            strides=tuple(map(tuple, strides)),
            radices=tuple(by_core),
        )
        paths = rank ** (self.cores - 1)  # products that are added up in one number of a vector
        bound = (3 * (self.init**2 / 3 / paths) ** (1 / self.cores)) ** 0.5
        ranks = (1, *(rank,) * (self.cores - 1), 1)
        tables = [
            context.rows(sum(rows), left * factor * right, bound)
            for rows, left, factor, right in zip(by_core, ranks, factors, ranks[1:], strict=False)
        ]
        names = ("first", "second", "third", "fourth")
        train = TensorTrain(
            address=address,
            factors=factors,
            rank=rank,
            **dict(zip(names, [*tables, None, None], strict=False)),
        )
        if not self.cache:
            return train
        cached = min(self.cache, sum(cardinalities))
        return HotLookup(
            hot=hot_rank(context.schema, cached, context.device),
            rows=context.table(cached, context.dim, self.init),
            cold=train,
        )


def whole_tables(context: BuildContext, init: float) -> Source:
    """Return a source of private rows for every id."""
    cardinalities = context.schema.cardinalities
    table = context.table(sum(cardinalities), context.dim, init)
    return Lookup(address=OffsetAddress.of(cardinalities), rows=table, combine=Concat())


def largest(fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, at least 1; all below one that fits do so, too."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def row_factors(n: int, cores: int) -> tuple[int, ...]:
    """Return p_k near ``n^(1/cores)``, ascending, whose product is at least n."""
    return tuple(reversed(balanced(n, cores)))


def balanced_factors(dim: int, cores: int) -> tuple[int, ...]:
    """Return the factorisation of ``dim`` into ``cores`` factors of the least sum, ascending.

    A prime width gives ones and itself.
    """
    if cores == 1:
        return (dim,)
    divisors = [first for first in range(1, dim + 1) if dim % first == 0 and first**cores <= dim]
    found = [(first, *balanced_factors(dim // first, cores - 1)) for first in divisors]
    return min((tuple(sorted(one)) for one in found), key=lambda one: (sum(one), one))


def train_size(rows: tuple[int, ...], factors: tuple[int, ...], rank: int) -> int:
    """Return the numbers of a feature's cores: ``sum_k p_k r_{k-1} q_k r_k``."""
    ranks = (1, *(rank,) * (len(rows) - 1), 1)
    return sum(
        p * left * q * right
        for p, q, left, right in zip(rows, factors, ranks, ranks[1:], strict=False)
    )
