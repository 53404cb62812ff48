"""`embedding`: one call from a schema and a text to a layer of the wanted size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from featemb.budget import build_spec, check_size, free_knobs, parse_bytes, solve
from featemb.errors import BudgetError, ConfigError
from featemb.hashing import mix64_int
from featemb.layer import FeatureEmbedding, MethodConfig
from featemb.schema import Schema
from featemb.spec import Spec, parse

_STEPS = 12


@dataclass(frozen=True)
class Request:
    """What a layer was asked for.

    Attributes:
        schema: the features, with training counts where known.
        spec: method and codec as given, size knobs not yet solved.
        dim: output width.
        ratio: compression ratio asked for, or None.
        budget: serving bytes asked for, or None.
        seed: seed of the layer.
        device: where its tables are.
    """

    schema: Schema
    spec: Spec
    dim: int
    ratio: float | None
    budget: int | None
    seed: int
    device: torch.device

    def build(self) -> FeatureEmbedding:
        """Solve the size knobs and make the layer."""
        spec = self._solved()
        layer = build_spec(spec, self.schema, self.dim, self.seed, self.device)
        layer.request, layer.spec = self, spec
        return layer

    def _solved(self) -> Spec:
        limit = self.limit()
        if limit is not None:
            return solve(self.spec, self.schema, self.dim, limit, self.seed)
        if len(free_knobs(self.spec)) < 2 or not self.schema.bounded:
            return self.spec
        # each default alone is a tenth of the full table: so is that of several methods together,
        # or the smallest that some steps from there find
        wanted = self.schema.full_bytes(self.dim) // 10
        for _ in range(_STEPS):
            try:
                return solve(self.spec, self.schema, self.dim, wanted, self.seed)
            except BudgetError as error:
                wanted = max(error.floor, wanted * 3 // 2)
        return self.spec

    def limit(self) -> int | None:
        """Serving bytes allowed, or None without a ratio and a budget."""
        if self.budget is not None:
            return self.budget
        if self.ratio is not None:
            return int(self.schema.full_bytes(self.dim) / self.ratio)
        return None

    def companion(self, dim: int) -> FeatureEmbedding:
        """Make a layer of another width with the same methods, codec and ratio.

        A byte budget is scaled by the widths; a method of one size is not asked for another. Where
        the methods cannot get that small at this width, the layer is hashed instead. The seed
        differs, so that hash collisions do too.
        """
        check_size("dim", dim)
        spec = self.spec.at_width(dim)
        limit = self._companion_limit(spec, dim)
        seed = mix64_int(self.seed + dim) >> 33
        same = replace(self, spec=spec, dim=dim, ratio=None, budget=limit, seed=seed)
        if limit is None or str(spec) == "hash":
            return same.build_or_smallest()
        try:
            return same.build()
        except BudgetError:
            return replace(same, spec=parse("hash")).build_or_smallest()

    def _companion_limit(self, spec: Spec, dim: int) -> int | None:
        """Return the bytes of a companion, or None where its size is set by hand or by default."""
        if not any(method.knob is not None for method in spec.methods):
            return None
        if self.budget is not None:
            return self.budget * dim // self.dim
        if self.ratio is not None:
            return int(self.schema.full_bytes(dim) / self.ratio)
        if len(spec.methods) == len(self.spec.methods) or not free_knobs(spec):
            return None
        # the methods that were left out made the layer smaller
        plan = replace(self, device=torch.device("meta"))
        return plan.build().memory().serving * dim // self.dim

    def build_or_smallest(self) -> FeatureEmbedding:
        """Make the layer, of its smallest size where the limit is below it."""
        try:
            return self.build()
        except BudgetError as error:
            return replace(self, ratio=None, budget=error.floor).build()


def embedding(
    schema: Schema,
    spec: str | Spec | MethodConfig = "full",
    *,
    dim: int = 16,
    ratio: float | None = None,
    budget: int | str | None = None,
    seed: int = 0,
    counts: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> FeatureEmbedding:
    """Make an embedding layer for a schema.

    Args:
        schema: the features.
        spec: method and codec, such as ``"unified(lookups=2)+int8"``, or several methods and a
            codec (see `featemb.spec`).
        dim: output width of a feature.
        ratio: bytes of the plain fp32 tables of this schema and width / serving bytes wanted.
        budget: serving bytes wanted: an int, or a text such as ``"2MB"`` (MB = 10^6 bytes).
            At most one of ratio and budget; the layer never exceeds it.
        seed: the one source of the layer's randomness (initial values, hash salts).
        counts: training counts of ids by feature, where they are not in the schema.
        device: where the tables are made; "meta" makes a plan without memory.

    Raises:
        ConfigError: a name or setting is not allowed.
        BudgetError: the method cannot get that small; ``floor`` holds the smallest size.
        SchemaError: the method needs a cardinality that is not known.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    elif isinstance(spec, MethodConfig):
        spec = Spec(spec)
    if not isinstance(spec, Spec):
        raise ConfigError(f"spec must be a text, a Spec or a MethodConfig, got {spec!r}")
    check_request(dim, ratio, budget)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be an integer, 0 <= seed < 2^63, got {seed!r}")
    if counts is not None:
        schema = schema.with_counts(counts)
    if not spec.method.unbounded:
        _ = schema.cardinalities  # says which feature lacks one
    request = Request(
        schema,
        spec,
        dim,
        ratio,
        None if budget is None else parse_bytes(budget),
        seed,
        torch.device(device),
    )
    return request.build()


def check_request(dim: int, ratio: float | None, budget: int | str | None) -> None:
    """Refuse a width or a size that no layer could have.

    Raises:
        ConfigError: names the argument and its value.
    """
    check_size("dim", dim)
    if ratio is not None and budget is not None:
        raise ConfigError(f"give a ratio or a budget, not both: got {ratio=} and {budget=}")
    if ratio is not None and not (isinstance(ratio, (int, float)) and ratio > 0):
        raise ConfigError(f"ratio must be > 0, got {ratio!r}")
    if budget is not None:
        _ = parse_bytes(budget)
