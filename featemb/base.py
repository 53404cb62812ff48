"""`EmbeddingBase`: the call shared by trainable and frozen layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featemb import once
from featemb.ids import Jagged, parse
from featemb.parts.base import Source
from featemb.pooling import feature_of_values, lay_out, pool_bags
from featemb.schema import Schema


class EmbeddingBase(nn.Module):
    """Abstract: checks ids, looks them up, pools bags, lays the features side by side.

    Attributes:
        schema: the features.
        dim: output width asked for.
        widths: output width of each feature.
    """

    def __init__(self, schema: Schema, dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.schema = schema
        self.dim = dim
        self.widths = tuple(widths)

    def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return the vectors ``[N, D]`` of ids int64 ``[N]`` of the features int64 ``[N]``.

        D is the largest width; a narrower feature uses its first columns.
        """
        raise NotImplementedError

    def forward_single(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]`` for single-valued ids ``[B, F]``."""
        batch, num_features = ids.shape
        feature = torch.arange(num_features, device=ids.device).repeat(batch)
        return self.lookup(ids.reshape(-1), feature).view(batch, num_features, -1)

    def forward_bags(self, ids: Jagged) -> Tensor:
        """Return ``[B, F, D]`` for feature-major bags; each feature pools by its own rule."""
        feature = feature_of_values(ids, self.schema.num_features)
        return pool_bags(self.lookup(ids.values, feature), ids.lengths, self.schema)

    def forward(self, ids: Any) -> Tensor:
        """Return the embedded batch ``[B, W]``, W = ``sum(widths)``.

        With equal widths, ``output.view(B, F, D)`` is free.

        Args:
            ids: int64 ``[B, F]`` where all features are single-valued, else a `Jagged`, a
                KeyedJaggedTensor or a dict (see `featemb.ids.parse`).

        Raises:
            SchemaError: the input does not fit the schema.
            IdError: an id is out of range, or the batch is empty.
        """
        checked = parse(ids, self.schema)
        if isinstance(checked, Jagged):
            vectors = self.forward_bags(checked)
        else:
            vectors = self.forward_single(checked)
        return lay_out(vectors, self.widths)

    def extra_repr(self) -> str:
        """Features and widths, for printing."""
        return f"features={self.schema.num_features}, width={sum(self.widths)}"


class SourceEmbedding(EmbeddingBase):
    """A layer whose answers come from one `Source`, trainable or frozen."""

    source: Source

    def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of ids ``[...]`` of broadcastable features."""
        if self._once():
            return once.look_up(self.source, ids, feature, self.schema)
        vectors: Tensor = self.source(ids, feature)
        return vectors

    def forward_single(self, ids: Tensor) -> Tensor:
        """Look up ``[B, F]`` at once, each feature in its column."""
        if self._once():
            return self.lookup(ids, torch.arange(ids.shape[1], device=ids.device))
        return self.source.dense(ids)

    def _once(self) -> bool:
        """Whether distinct ids are looked up once; training may count how often each is read."""
        return not self.training and once.applies() and once.needed(self.source)
