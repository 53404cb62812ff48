"""Deep hash embedding: a network in the place of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.config import register, tunable
from featemb.errors import ConfigError
from featemb.layer import BuildContext, MethodConfig, PartsEmbedding
from featemb.methods.hash import Hash
from featemb.methods.tt import largest, whole_tables
from featemb.parts import Split
from featemb.parts.deep_hash import NormedDeepHash
from featemb.schema import Schema

_MISH_SQUARE = 0.4526  # mean of mish(z)^2 for a standard normal z
_MOST_NUMBERS = 2**59


@register
@dataclass(frozen=True, kw_only=True)
class DHE(MethodConfig):
    """A network turns many hashes of an id into its vector; there is no table.

    Kang et al., "Learning to Embed Categorical Features without Embedding Tables for
    Recommendation", KDD 2021 (2010.10784). With k hash codes u(f, x) in ``[-1, 1]^k`` (see
    `featemb.parts.deep_hash.HashEncoder`), a network for each feature of H hidden layers of w
    units: ``z_1 = mish(norm(W_1 u))``, ``z_l = mish(norm(W_l z_{l-1}))``,
    ``e(f, x) = W z_H + b``; norm is batch normalisation. A feature whose network would be no
    smaller than its table is whole.

    In training, each feature's values of a batch are normalised by their own mean and variance; in
    eval mode and when served by running ones (momentum 0.1), which are folded into the weights.

    Initial values are scaled by the inputs of a layer: hidden units start near variance 1, vectors
    near the dense table's standard deviation ``init / sqrt(3)``.

    Any non-negative int64 is a valid id of an unbounded feature. An id never seen in training
    gets what the network makes of its codes: a number of the trained ids' scale, without meaning,
    since codes of ids have nothing in common; in a whole feature its own row as initialised.

    Bytes: ``4 sum_f min(n_f D, k w + (H - 1) w^2 + H w + w D + D)``, and 8 for the seed. Training
    holds ``12 H w`` more a network. A codec stores the rows of whole features, networks stay fp32.

    Deviations: multiply-shift hashes of 20 bits on mixed 64-bit keys replace
    ``((a x + b) mod p) mod 10^6``, and their coefficients are made from the seed; linear layers
    before a norm have no bias, which it would cancel; a batch with one value of a feature takes
    the running statistics.

    Attributes:
        width: w; None takes the networks to a tenth of the full table's numbers.
        hashes: k.
        layers: H, at least 2.
        distribution: "uniform" codes in ``[-1, 1]``, or "normal" ones.
        init: vectors start about with the standard deviation of uniform numbers in
            ``[-init, init]``.
    """

    name: ClassVar[str] = "dhe"
    summary: ClassVar[str] = "a network turns an id's hashes into its vector; no table"
    paper: ClassVar[str] = "Kang et al., KDD 2021"
    own_rows: ClassVar[str] = "has no rows: an encoder computes the vectors"
    knob: ClassVar[str] = "width"
    unbounded: ClassVar[bool] = True

    width: int | None = None
    hashes: int = tunable(1024, choices=(256, 512, 1024, 2048))
    layers: int = tunable(5, 2, 6)
    distribution: str = tunable("uniform", choices=("uniform", "normal"))
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("hashes", "at least 1", self.hashes >= 1)
        self.require("layers", "at least 2", self.layers >= 2)
        known = self.distribution in ("uniform", "normal")
        self.require("distribution", "uniform or normal", known)
        pairs = self.distribution == "uniform" or self.hashes % 2 == 0
        self.require("hashes", "even with distribution=normal", pairs)

    def at_width(self, dim: int) -> MethodConfig:
        """Hash first-order weights at the same ratio; a width set by hand knows none and stays."""
        return Hash() if dim == 1 and self.width is None else self

    def build(self, context: BuildContext) -> PartsEmbedding:
        """Make networks and whole tables."""
        schema, dim = context.schema, context.dim
        width = self._default_width(schema, dim) if self.width is None else self.width
        size = self.network_size(width, dim)
        self.require("width", "such that networks hold below 2^59 numbers", size < _MOST_NUMBERS)
        whole = tuple(int(_table_size(n, dim) <= size) for n in _cardinalities(schema))
        if all(whole):
            return PartsEmbedding(context, self, whole_tables(context, self.init))
        networks = self._networks(context.only([not one for one in whole]), width)
        if not any(whole):
            return PartsEmbedding(context, self, networks)
        tables = whole_tables(context.only([bool(one) for one in whole]), self.init)
        split = Split(sources=[networks, tables], which=whole, dim=dim)
        return PartsEmbedding(context, self, split)

    def network_size(self, width: int, dim: int) -> int:
        """Return the numbers of a served network: ``k w + (H - 1) w^2 + H w + w D + D``."""
        hidden = (self.layers - 1) * width**2 + self.layers * width
        return self.hashes * width + hidden + width * dim + dim

    def _default_width(self, schema: Schema, dim: int) -> int:
        """Largest width within a tenth of the full table's numbers, at least 1."""
        if not schema.bounded:
            raise ConfigError("dhe: a schema with unbounded features needs width or a budget")
        tables = [n * dim for n in schema.cardinalities]

        def fits(width: int) -> bool:
            size = self.network_size(width, dim)
            return 10 * sum(min(table, size) for table in tables) <= sum(tables)

        return largest(fits)

    def _networks(self, context: BuildContext, width: int) -> NormedDeepHash:
        count, dim = context.schema.num_features, context.dim
        normal = self.distribution == "normal"
        # uniform numbers in [-a, a] have the variance a^2 / 3
        first = (3 / self.hashes * (1 if normal else 3)) ** 0.5
        hidden = (3 / (_MISH_SQUARE * width)) ** 0.5
        last = self.init / (_MISH_SQUARE * width) ** 0.5
        between = _uniform(context, (count, self.layers - 1, width, width), hidden)
        norms = (count, self.layers, width)
        return NormedDeepHash(
            seed=context.seed_tensor(),
            hashes=self.hashes,
            normal=normal,
            first=nn.Parameter(_uniform(context, (count, self.hashes, width), first)),
            hidden=nn.Parameter(between),
            last=nn.Parameter(_uniform(context, (count, width, dim), last)),
            last_bias=nn.Parameter(torch.zeros(count, dim, device=context.device)),
            scale=nn.Parameter(torch.ones(norms, device=context.device)),
            shift=nn.Parameter(torch.zeros(norms, device=context.device)),
            running_mean=torch.zeros(norms, device=context.device),
            running_var=torch.ones(norms, device=context.device),
        )


def _cardinalities(schema: Schema) -> list[int | None]:
    return [feature.cardinality for feature in schema.features]


def _table_size(n: int | None, dim: int) -> float:
    return float("inf") if n is None else n * dim


def _uniform(context: BuildContext, shape: tuple[int, ...], bound: float) -> Tensor:
    """Draw on the CPU, so that every device starts from the same numbers."""
    generator = context.generator()
    if context.device.type == "meta":
        return torch.empty(shape, device=context.device)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(context.device)
