"""`embedding`: one call from a schema and a text to a layer of the wanted size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from featemb.budget import check_size, context_of, parse_bytes, solve
from featemb.errors import ConfigError
from featemb.hashing import mix64_int
from featemb.layer import FeatureEmbedding, MethodConfig
from featemb.schema import Schema
from featemb.spec import Spec, parse


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
        spec = self.spec
        limit = self.limit()
        if limit is not None:
            spec = solve(spec, self.schema, self.dim, limit, self.seed)
        context = context_of(spec, self.schema, self.dim, self.seed, self.device)
        layer = spec.method.build(context)
        layer.request = self
        return layer

    def limit(self) -> int | None:
        """Serving bytes allowed, or None without a ratio and a budget."""
        if self.budget is not None:
            return self.budget
        if self.ratio is not None:
            return int(self.schema.full_bytes(self.dim) / self.ratio)
        return None

    def companion(self, dim: int) -> FeatureEmbedding:
        """Make a layer of another width with the same method, codec and ratio.

        A byte budget is scaled by the widths; a method of one size is not asked for another. The
        seed differs, so that hash collisions do too.
        """
        check_size("dim", dim)
        method = self.spec.method.at_width(dim)
        sized = method.knob is not None
        return replace(
            self,
            spec=Spec(method, self.spec.codec),
            dim=dim,
            ratio=self.ratio if sized else None,
            budget=self.budget * dim // self.dim if sized and self.budget is not None else None,
            seed=mix64_int(self.seed + dim) >> 33,
        ).build()


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
        spec: method and codec, such as ``"unified(lookups=2)+int8"`` (see `featemb.spec`).
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
    check_size("dim", dim)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be an integer, 0 <= seed < 2^63, got {seed!r}")
    if ratio is not None and budget is not None:
        raise ConfigError(f"give a ratio or a budget, not both: got {ratio=} and {budget=}")
    if ratio is not None and not (isinstance(ratio, (int, float)) and ratio > 0):
        raise ConfigError(f"ratio must be > 0, got {ratio!r}")
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
