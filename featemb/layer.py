"""`FeatureEmbedding`: the contract of a trainable layer, with a default for almost everything.

Shape letters: B samples, F features, N ids, L lookups an id, C width of a row, D the largest
feature width, W the sum of the features' widths.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from featemb.base import EmbeddingBase, SourceEmbedding
from featemb.codecs.base import Codec, codec_by_name
from featemb.codecs.floats import Fp32
from featemb.config import Config
from featemb.errors import ConfigError, FeatembError
from featemb.frozen import FrozenEmbedding
from featemb.hashing import mix64_int
from featemb.memory import Memory, module_bytes, training_bytes
from featemb.parts import Lookup, Source
from featemb.rows import RowTable
from featemb.schema import Schema
from featemb.stage import Stage
from featemb.variants import Variants

if TYPE_CHECKING:
    from featemb.build import Request

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


Axis = Literal["address", "shape", "format"]

_MOST_NUMBERS = 2**59


@dataclass(frozen=True)
class BuildContext:
    """What a method's ``build`` gets beside its configuration.

    Attributes:
        schema: the features.
        dim: output width asked for.
        seed: the one source of randomness.
        device: where the tables are made; "meta" for plans.
        codec: format of the frozen rows, for methods that fit their size to bytes.
        tables: counts the tables made, so that each draws its own initial values.
    """

    schema: Schema
    dim: int
    seed: int
    device: torch.device
    codec: Codec = field(default_factory=Fp32)
    tables: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    def seed_tensor(self) -> Tensor:
        """The seed as an int64 scalar, for address parts."""
        return torch.tensor(self.seed, device=self.device)

    def table(self, num_rows: int, width: int, init: float, center: float = 0.0) -> RowTable:
        """Make a `RowTable` with uniform initial values in ``[center - init, center + init]``.

        Values are drawn on the CPU, so that every device starts from the same ones.
        """
        if num_rows * width >= _MOST_NUMBERS:
            raise ConfigError(f"a table of {num_rows} rows of {width} numbers is beyond 2^61 bytes")
        if self.device.type == "meta":
            with self.device:
                return RowTable(num_rows, width, init, generator=None)
        return RowTable(num_rows, width, init, self.generator(), center).to(self.device)

    def only(self, wanted: Sequence[bool]) -> BuildContext:
        """Return the context of some of the features."""
        kept = [f for f, keep in zip(self.schema.features, wanted, strict=True) if keep]
        return replace(self, schema=Schema(kept))

    def generator(self) -> torch.Generator:
        """Return a generator of its own for the next table (or other tensor) of the layer."""
        number = next(self.tables)
        seed = self.seed if number == 0 else mix64_int(self.seed + number) >> 1
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Config):
    """Base of the methods' configurations.

    Attributes:
        summary: one line for lists and the docs' table.
        paper: source (authors, venue, year).
        knob: the integer setting that a byte budget is solved for; None if the size is fixed.
        knob_in_bytes: whether the knob is the limit of serving bytes itself: the method fits its
            parts to it, and raises `BudgetError` in ``build`` where it cannot.
        unbounded: whether features without a cardinality are accepted.
        axis: what the method decides: which rows an id reads ("address"), how many numbers a row
            has or keeps ("shape"), or in which format rows are trained and stored ("format").
    """

    kind: ClassVar[str] = "method"
    axis: ClassVar[Axis] = "address"
    summary: ClassVar[str]
    paper: ClassVar[str]
    knob: ClassVar[str | None] = None
    knob_in_bytes: ClassVar[bool] = False
    unbounded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the types, and the ranges of the settings that most methods have."""
        super().__post_init__()
        if not 0 <= getattr(self, "init", 0.0) < float("inf"):
            self.require("init", "finite and at least 0", holds=False)
        if not 0 <= getattr(self, "power", 0.0) <= 1:
            self.require("power", "between 0 and 1", holds=False)
        size = None if self.knob is None else getattr(self, self.knob)
        if self.knob is not None and size is not None and size < 1:
            self.require(self.knob, "at least 1", holds=False)

    def build(self, context: BuildContext) -> FeatureEmbedding:
        """Make the layer."""
        raise NotImplementedError

    def at_width(self, dim: int) -> MethodConfig:
        """Return the configuration for another output width (first-order terms use width 1)."""
        return self

    def smallest_knob(self, schema: Schema) -> int:
        """Smallest value of the knob that works for a schema."""
        return 1


class FeatureEmbedding(EmbeddingBase):
    """A trainable embedding layer: ids in, ``[B, W]`` out.

    A method writes `lookup` (or builds a `RowEmbedding`) and overrides a hook only where it
    needs one. Everything that decides an answer is a parameter, a buffer or the configuration.

    Attributes:
        schema: the features.
        config: the method's configuration, with its size knobs solved.
        dim: output width asked for.
        widths: output width of each feature.
        codec: format of the frozen rows.
        request: what `featemb.embedding` was asked for, from which `companion` is made.
        sizes_follow_values: whether the frozen size depends on the values of tensors (pruning), not
            only on their shapes; `memory` then freezes the real layer.
        architecture: names of parameters and buffers that a rewind leaves alone: what was searched.
        variants: the forms that a search compares at the moment.
        smooth: whether answers in training are a smooth function of the parameters; false with
            random masks or surrogate gradients, whose gradients a method tests by their formula.
    """

    request: Request
    variants: Variants | None = None
    sizes_follow_values: ClassVar[bool] = False
    architecture: ClassVar[tuple[str, ...]] = ()
    smooth: ClassVar[bool] = True

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        widths: Sequence[int] | None = None,
    ) -> None:
        widths = widths or (context.dim,) * context.schema.num_features
        super().__init__(context.schema, context.dim, widths)
        self.config = config
        self.seed = context.seed
        self.codec = context.codec

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups; a group may name its own ``optimizer`` (see `featemb.optim`).

        A group with ``split="held_out"`` is trained on held-out batches, in stages that have them.
        """
        return [{"params": list(self.parameters()), "lr": lr}]

    def penalty(self) -> Tensor:
        """A scalar to add to the loss."""
        first = next(self.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)

    def after_backward(self) -> None:
        """Called between ``backward`` and the optimizers' steps; gradients are there."""

    def after_step(self, step: int) -> None:
        """Called after every optimizer step; ``step`` counts from 1 within the stage."""

    def stages(self) -> tuple[Stage, ...]:
        """The stages of training, in order."""
        return (Stage("train"),)

    def begin_stage(self, stage: Stage) -> None:
        """Called before a stage that the layer lists, after its rewind."""

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Run a search stage; ``evaluate()`` scores the model as it stands, higher is better.

        Where ``evaluate`` has a method ``variants(count)`` it scores several forms of the layer in
        one pass (see `featemb.Evaluator`).

        Raises:
            FeatembError: the method has no search stage.
        """
        raise FeatembError(f"method {self.config.name!r} has no search stage {stage.name!r}")

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        """Make the deployable form with a codec: what a method writes for `freeze`."""
        raise NotImplementedError

    def freeze(self, codec: Codec | str | None = None) -> FrozenEmbedding:
        """Return the deployable form: a separate layer of buffers only.

        Args:
            codec: row format, such as "int8"; None takes the layer's own.
        """
        if isinstance(codec, str):
            codec = codec_by_name(codec)
        with torch.no_grad():
            return self._freeze(codec or self.codec).eval()

    def memory(self, optimizer: Optimizers = None) -> Memory:
        """Bytes by part, read from the tensors; with an optimizer, its state of this layer too."""
        frozen = (self if self.sizes_follow_values else _meta_copy(self)).freeze()
        return Memory(module_bytes(frozen), training_bytes(self, optimizer))

    def companion(self, dim: int = 1) -> FeatureEmbedding:
        """Return a layer of another width from the same request: first-order terms.

        It has the same method and codec, the same compression ratio or hand-set size, and a
        seed of its own.
        """
        return self.request.companion(dim)


def _meta_copy(layer: FeatureEmbedding) -> FeatureEmbedding:
    """Copy a layer with every tensor on the meta device: its structure without its bytes."""
    memo: dict[int, Any] = {}
    for parameter in layer.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in layer.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    request = getattr(layer, "request", None)
    memo[id(request)] = request
    return copy.deepcopy(layer, memo)


class PartsEmbedding(SourceEmbedding, FeatureEmbedding):
    """A layer made of parts: it freezes, exports and counts itself through them.

    Args:
        context: schema, width, seed, device.
        config: the method's configuration.
        source: the part that maps (ids, feature) to vectors ``[..., D]``.
        widths: output width of each feature; equal to ``dim`` by default.
    """

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        source: Source,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(context, config, widths)
        self.source = source

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        source = self.source.frozen(codec)
        assert isinstance(source, Source)
        return FrozenEmbedding(self.schema, self.dim, self.widths, source)


class RowEmbedding(PartsEmbedding):
    """A layer that is one chain address -> rows -> combine; most methods build one of these.

    Args:
        context: schema, width, seed, device.
        config: the method's configuration.
        address: a part, (ids, feature) -> rows ``[..., L]``.
        rows: the table.
        combine: a part, vectors ``[..., L, C]`` -> ``[..., D]``.
        widths: output width of each feature; equal to ``dim`` by default.
    """

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        *,
        address: nn.Module,
        rows: RowTable,
        combine: nn.Module,
        widths: Sequence[int] | None = None,
    ) -> None:
        source = Lookup(address=address, rows=rows, combine=combine)
        super().__init__(context, config, source, widths)
