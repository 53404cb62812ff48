"""`FeatureEmbedding`: the contract of a trainable layer, with a default for almost everything.

Shape letters: B samples, F features, N ids, L lookups an id, C width of a row, D the largest
feature width, W the sum of the features' widths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from featemb.base import EmbeddingBase, SourceEmbedding
from featemb.codecs.base import Codec, codec_by_name
from featemb.config import Config
from featemb.context import BuildContext as BuildContext
from featemb.errors import FeatembError
from featemb.frozen import FrozenEmbedding
from featemb.memory import Memory, module_bytes, training_bytes
from featemb.parts import Lookup, Source
from featemb.schema import Schema
from featemb.stage import Stage
from featemb.variants import Variants

if TYPE_CHECKING:
    from featemb.build import Request
    from featemb.spec import Spec

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


Axis = Literal["address", "shape", "format"]
E = TypeVar("E", bound=EmbeddingBase)


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
        own_rows: why another method cannot store this one's rows (see `featemb.composition`);
            empty where it can: its ``build`` takes them from `BuildContext.rows`.
    """

    kind: ClassVar[str] = "method"
    axis: ClassVar[Axis] = "address"
    own_rows: ClassVar[str] = ""
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
        spec: the methods and the codec with their size knobs solved.
        sizes_follow_values: whether the frozen size depends on the values of tensors (pruning), not
            only on their shapes; `memory` then freezes the real layer.
        architecture: names of parameters and buffers that a rewind leaves alone: what was searched.
        variants: the forms that a search compares at the moment.
        smooth: whether answers in training are a smooth function of the parameters; false with
            random masks or surrogate gradients, whose gradients a method tests by their formula.
    """

    request: Request
    spec: Spec
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

    def stored(self) -> list[FeatureEmbedding]:
        """Return the layers that store this one's rows, in a composition; theirs are not listed."""
        return outermost(self.children())

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are not of a layer that stores this one's rows.

        Those that another engine steps (``parameter.stepped_apart``) are left out.
        """
        theirs = {id(p) for layer in self.stored() for p in layer.parameters()}
        own = [p for p in self.parameters() if id(p) not in theirs]
        return [p for p in own if not getattr(p, "stepped_apart", False)]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups; a group may name its own ``optimizer`` (see `featemb.optim`).

        A group with ``split="held_out"`` is trained on held-out batches, in stages that have them.
        """
        groups: list[dict[str, Any]] = [{"params": self.own_parameters(), "lr": lr}]
        return groups + [group for one in self.stored() for group in one.param_groups(lr)]

    def penalty(self) -> Tensor:
        """A scalar to add to the loss."""
        first = next(self.parameters(), None)
        zero = torch.zeros((), device=None if first is None else first.device)
        return sum((one.penalty() for one in self.stored()), zero)

    def after_backward(self) -> None:
        """Called between ``backward`` and the optimizers' steps; gradients are there."""
        for one in self.stored():
            one.after_backward()

    def after_step(self, step: int) -> None:
        """Called after every optimizer step; ``step`` counts from 1 within the stage."""
        for one in self.stored():
            one.after_step(step)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of training, in order; those of the layers that store its rows, if any."""
        stages = [one.stages() for one in self.stored()]
        return max(stages, key=len, default=(Stage("train"),))

    def begin_stage(self, stage: Stage) -> None:
        """Called before a stage that the layer lists, after its rewind."""
        for one in self.stored():
            if stage.name in [own.name for own in one.stages()]:
                one.begin_stage(stage)

    def search(self, stage: Stage, evaluate: Callable[[], float]) -> None:
        """Run a search stage; ``evaluate()`` scores the model as it stands, higher is better.

        Where ``evaluate`` has a method ``variants(count)`` it scores several forms of the layer in
        one pass (see `featemb.Evaluator`).

        Raises:
            FeatembError: the method has no search stage.
        """
        listing = [one for one in self.stored() if stage in one.stages()]
        if not listing:
            raise FeatembError(f"method {self.config.name!r} has no search stage {stage.name!r}")
        for one in listing:
            one.search(stage, evaluate)

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
            return self._freeze((codec or self.codec).counted(self.schema)).eval()

    def memory(self, optimizer: Optimizers = None) -> Memory:
        """Bytes by part, read from the tensors; with an optimizer, its state of this layer too."""
        layers = [one for one in self.modules() if isinstance(one, FeatureEmbedding)]
        real = any(one.sizes_follow_values for one in layers)
        frozen = (self if real else meta_copy(self)).freeze()
        return Memory(module_bytes(frozen), training_bytes(self, optimizer))

    def companion(self, dim: int = 1) -> FeatureEmbedding:
        """Return a layer of another width from the same request: first-order terms.

        It has the same method and codec, the same compression ratio or hand-set size, and a
        seed of its own.
        """
        return self.request.companion(dim)


def outermost(modules: Iterable[nn.Module]) -> list[FeatureEmbedding]:
    """Return the embedding layers in some modules, without those that store another's rows."""
    found: list[FeatureEmbedding] = []
    for module in modules:
        found += [module] if isinstance(module, FeatureEmbedding) else outermost(module.children())
    return list(dict.fromkeys(found))


def meta_copy(layer: E) -> E:
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
        rows: a part, rows ``[..., L]`` -> vectors ``[..., L, C]``: what `BuildContext.rows` makes.
        combine: a part, vectors ``[..., L, C]`` -> ``[..., D]``.
        widths: output width of each feature; equal to ``dim`` by default.
    """

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        *,
        address: nn.Module,
        rows: nn.Module,
        combine: nn.Module,
        widths: Sequence[int] | None = None,
    ) -> None:
        source = Lookup(address=address, rows=rows, combine=combine)
        super().__init__(context, config, source, widths)
