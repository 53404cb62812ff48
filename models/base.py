"""`CTRModel`: what every model shares: the call, its checks, bytes, penalty and freezing.

Shape letters: B samples, F features, M numeric columns, W sum of the features' widths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec
from featemb.errors import ConfigError, SchemaError
from featemb.frozen import FrozenEmbedding
from featemb.ids import tracing
from featemb.layer import FeatureEmbedding
from featemb.memory import Memory, tensor_bytes
from featemb.models.config import ModelConfig

Layer = FeatureEmbedding | FrozenEmbedding
Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


@dataclass(frozen=True)
class ModelContext:
    """What a model gets beside its configuration.

    Attributes:
        embedding: the layer that the model will own.
        numeric: number of numeric columns, M.
        generator: the one source of initial weights (CPU).
    """

    embedding: FeatureEmbedding
    numeric: int
    generator: torch.Generator


class CTRModel(nn.Module):
    """Abstract: a model that scores samples from embedded features and numeric columns.

    A model writes `logits`. Its embedding layers (the given one and companions) are direct
    children, so that bytes, penalties and freezing find them.

    Attributes:
        name: registered name.
        config_class: the dataclass of the model's settings.
        summary: one line for lists and the docs' table.
        paper: source (authors, venue, year).
        embedding_dim: width that the model asks of its layer; None leaves it open.
        config: the settings.
        numeric: number of numeric columns, M.
        embedding: the layer.
        built_widths: output width of each feature that the model was built for; a served model's
            layer may be narrower.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    summary: ClassVar[str]
    paper: ClassVar[str]
    embedding_dim: ClassVar[int | None] = None

    def __init__(self, context: ModelContext, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.numeric = context.numeric
        self.embedding: Layer = context.embedding
        self.built_widths = tuple(context.embedding.widths)

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        """Return logits ``[B]``; every model writes this.

        Args:
            ids: as given to the model, for companions.
            vectors: ``[B, W]``, the embedded ids.
            numeric: ``[B, M]`` of the same dtype, or None where M is 0.
        """
        raise NotImplementedError

    def forward(self, ids: Any, numeric: Tensor | None = None) -> Tensor:
        """Return the logits ``[B]`` of a batch.

        Args:
            ids: whatever the embedding layer takes.
            numeric: float ``[B, M]``; left out where the model has no numeric columns.

        Raises:
            SchemaError: ids or numeric do not fit the schema, or a numeric value is not finite.
            IdError: an id is out of range.
        """
        vectors: Tensor = self.embedding(ids)
        return self.logits(ids, vectors, self._checked(numeric, vectors))

    def _checked(self, numeric: Tensor | None, vectors: Tensor) -> Tensor | None:
        if numeric is None:
            if self.numeric:
                raise SchemaError(
                    f"{self.name} was built with numeric={self.numeric}: "
                    f"call net(ids, numeric) with a float tensor [B, {self.numeric}]"
                )
            return None
        if not self.numeric:
            raise SchemaError(
                f"{self.name} was built without numeric columns but got some "
                f"{list(numeric.shape)}: build it with numeric={numeric.shape[-1]}"
            )
        if not tracing():
            self._check_values(numeric, vectors.shape[0])
        return numeric.to(vectors.dtype)

    def _check_values(self, numeric: Tensor, batch: int) -> None:
        if not numeric.is_floating_point() or numeric.shape != (batch, self.numeric):
            raise SchemaError(
                f"{self.name}: numeric must be a float tensor [{batch}, {self.numeric}], "
                f"got {numeric.dtype} {list(numeric.shape)}"
            )
        finite = numeric.isfinite()
        if not finite.all():
            sample, column = (int(i) for i in (~finite).nonzero()[0])
            known = self.embedding.schema.numeric
            name = repr(known[column]) if len(known) == self.numeric else column
            raise SchemaError(
                f"numeric column {name}: sample {sample} is {float(numeric[sample, column])}, "
                "must be finite (fill missing values first)"
            )

    def embeddings(self) -> list[Layer]:
        """Return every embedding layer inside: the given one, then companions."""
        return [child for child in self.children() if isinstance(child, Layer)]

    def memory(self, optimizer: Optimizers = None) -> Memory:
        """Bytes of all embedding layers, companions included; the rest is in `net_bytes`."""
        total = Memory()
        for layer in self.embeddings():
            if isinstance(layer, FeatureEmbedding):
                total = total + layer.memory(optimizer)
            else:
                total = total + layer.memory()
        return total

    def penalty(self) -> Tensor:
        """Return the scalar to add to the loss: the sum of the layers' penalties."""
        device = next(self.parameters()).device
        layers = [layer for layer in self.embeddings() if isinstance(layer, FeatureEmbedding)]
        return sum((layer.penalty() for layer in layers), torch.zeros((), device=device))

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the parameters outside the embedding layers."""
        inside = {id(p) for layer in self.embeddings() for p in layer.parameters()}
        return [p for p in self.parameters() if id(p) not in inside]

    def net_bytes(self) -> int:
        """Bytes of the parameters and buffers outside the embedding layers."""
        inside = {id(b) for layer in self.embeddings() for b in layer.buffers()}
        buffers = [b for b in self.buffers() if id(b) not in inside]
        return sum(tensor_bytes(t) for t in (*self.dense_parameters(), *buffers))

    def keep_inputs(self, columns: Sequence[int]) -> bool:
        """Leave some columns of ``[vectors; numeric]`` in place: the others are always zero.

        A model that can drop them cuts its weights, and from then on is given the rest. Its logits
        must stay the same up to rounding. By default a model is left as it is.

        Args:
            columns: positions that stay, ascending; those of all numeric columns among them.

        Returns:
            Whether the model now reads these columns alone.
        """
        return False

    def narrowed(self, widths: Sequence[int]) -> CTRModel | None:
        """Return a model that reads the first ``widths[f]`` numbers of each feature; or None.

        The others are zero. It shares all weights but those that are cut; call its `logits`.
        """
        memo: dict[int, Any] = {id(one): one for one in (*self.parameters(), *self.buffers())}
        memo |= {id(layer): layer for layer in self.embeddings()}
        other = copy.deepcopy(self, memo)
        narrow = other.keep_inputs(self._columns(self.embedding.widths, widths))
        return other if narrow else None

    def freeze(self, codec: Codec | str | None = None, narrow: bool = True) -> CTRModel:
        """Return a copy to serve: in eval mode, with every embedding layer in its frozen form.

        The tables are read once, by the layers' ``freeze``; they are not copied besides.

        Args:
            codec: row format, such as "int8"; None takes each layer's own.
            narrow: drop the columns of features that use only the first of their numbers, and the
                network's weights for them, where the model supports it (see `keep_inputs`).

        Raises:
            ConfigError: the model is frozen already.
        """
        memo: dict[int, Any] = {}
        for layer in self.embeddings():
            if not isinstance(layer, FeatureEmbedding):
                raise ConfigError(f"{self.name}: the model is frozen already")
            memo[id(layer)] = layer.freeze(codec)
        served = copy.deepcopy(self, memo).eval().requires_grad_(False)
        if narrow:
            served._narrow()
        return served

    def _narrow(self) -> None:
        wide = self.embedding
        assert isinstance(wide, FrozenEmbedding)
        narrow = wide.narrowed()
        if narrow is not wide and self.keep_widths(narrow.widths):
            self.embedding = narrow

    def keep_widths(self, widths: Sequence[int]) -> bool:
        """Read the first ``widths[f]`` numbers of each feature from now on (`keep_inputs`)."""
        return self.keep_inputs(self._columns(self.built_widths, widths))

    def _columns(self, wide: Sequence[int], narrow: Sequence[int]) -> list[int]:
        """Positions of narrower vectors, and of the numeric columns, in ``[vectors; numeric]``."""
        columns: list[int] = []
        start = 0
        for width, used in zip(wide, narrow, strict=True):
            columns += range(start, start + used)
            start += width
        return [*columns, *range(start, start + self.numeric)]
