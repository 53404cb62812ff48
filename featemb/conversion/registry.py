"""Replacers: for a type of module, what it holds and what takes its place.

A type that is not here is left as it is, but modules inside of it are looked at: TorchRec's
`EmbeddingBagCollection` and `EmbeddingCollection` hold `nn.EmbeddingBag` and `nn.Embedding` modules
and call them, so they need no entry. Another library's table gets one by `register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featemb.conversion.coded import CodedBag, CodedEmbedding, CodedTable
from featemb.conversion.held import Held, Layer, Table, plain_rows
from featemb.errors import FormatError
from featemb.frozen import FrozenEmbedding
from featemb.layer import FeatureEmbedding


class Replacer:
    """Abstract: how modules of a type are converted; modules inside of them are not looked at.

    Attributes:
        kind: its name in files.
        built: class of what it builds.
    """

    kind: ClassVar[str]
    built: ClassVar[type[nn.Module]]

    def refusal(self, module: nn.Module) -> str | None:
        """Return why a module cannot be converted, or None."""
        return None

    def held(self, name: str, module: nn.Module) -> Held:
        """Return what a module holds."""
        raise NotImplementedError

    def build(self, module: nn.Module, stored: nn.Module) -> nn.Module:
        """Return what takes a module's place.

        Args:
            module: the module.
            stored: what its `Held` was encoded to.
        """
        raise NotImplementedError

    def stored(self, built: nn.Module) -> nn.Module:
        """Return what was given to `build` of what it made."""
        raise NotImplementedError

    def describe(self, built: nn.Module) -> dict[str, Any]:
        """Return the settings of what `build` made, JSON-able, without its tensors."""
        raise NotImplementedError

    def rebuild(self, module: nn.Module, tree: Mapping[str, Any], stored: nn.Module) -> nn.Module:
        """Make again what `describe` told, in the place of a module of an untrained model.

        Raises:
            FormatError: it does not fit the module.
        """
        raise NotImplementedError


_REPLACERS: dict[type[nn.Module], Replacer] = {}


def register(kind: type[nn.Module], replacer: Replacer) -> None:
    """Convert modules of a type, and of subclasses that keep its ``forward``, by a replacer."""
    _REPLACERS[kind] = replacer


def find(module: nn.Module) -> tuple[Replacer, str | None] | None:
    """Return the replacer of a module, and why it cannot be used; None for other modules."""
    for kind in type(module).__mro__:
        if kind in _REPLACERS:
            return _REPLACERS[kind], _REPLACERS[kind].refusal(module)
    return None


def find_built(module: nn.Module) -> Replacer | None:
    """Return the replacer that built a module of a converted model; None for other modules."""
    return next((one for one in _REPLACERS.values() if type(module) is one.built), None)


class _Plain(Replacer):
    """What `nn.Embedding` and `nn.EmbeddingBag` share."""

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse what would change the weight or the answer behind the table's back."""
        if type(module).forward not in (nn.Embedding.forward, nn.EmbeddingBag.forward):
            return f"its class {type(module).__name__} has a forward of its own"
        if parametrize.is_parametrized(module):
            return "its weight is computed from other parameters"
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        if any(hooks):
            return "it has forward hooks, which would be lost"
        weight = module.weight
        if not isinstance(weight, Tensor) or weight.layout != torch.strided:
            return "its weight is no dense tensor"
        if weight.dim() != 2 or not weight.is_floating_point():
            return f"its weight is {weight.dtype} {list(weight.shape)}, not a matrix of floats"
        return None if weight.numel() else "it is empty"

    def held(self, name: str, module: nn.Module) -> Table:
        """Return the table."""
        assert isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        return Table(name, module.weight, module.max_norm, module.norm_type)

    def stored(self, built: nn.Module) -> nn.Module:
        """Return the coded table."""
        table = built.table
        assert isinstance(table, CodedTable)
        return table

    @staticmethod
    def fits(module: nn.Module, stored: nn.Module) -> CodedTable:
        """Check that a stored table is one of a module's.

        Raises:
            FormatError: its shape is another.
        """
        assert isinstance(stored, CodedTable)
        assert isinstance(module.weight, Tensor)
        if tuple(module.weight.shape) != (stored.num_rows, stored.width):
            raise FormatError(
                f"table {stored.name!r} is {stored.num_rows} x {stored.width} in the file and "
                f"{list(module.weight.shape)} in the model"
            )
        return stored


class _EmbeddingReplacer(_Plain):
    kind = "embedding"
    built = CodedEmbedding

    def build(self, module: nn.Module, stored: nn.Module) -> CodedEmbedding:
        assert isinstance(module, nn.Embedding)
        assert isinstance(stored, CodedTable)
        padding, zero = module.padding_idx, False
        if padding is not None:
            # masks of padding look for exact zeros, which not every codec gives
            row = torch.tensor([padding], device=module.weight.device)
            zero = not module.weight[padding].any() and bool(stored(row).any())
        return CodedEmbedding(stored, padding, zero)

    def describe(self, built: nn.Module) -> dict[str, Any]:
        assert isinstance(built, CodedEmbedding)
        return {"padding": built.padding_idx, "zero": built.zero_padding}

    def rebuild(
        self, module: nn.Module, tree: Mapping[str, Any], stored: nn.Module
    ) -> CodedEmbedding:
        return CodedEmbedding(self.fits(module, stored), tree["padding"], tree["zero"])


class _BagReplacer(_Plain):
    kind = "bag"
    built = CodedBag

    def build(self, module: nn.Module, stored: nn.Module) -> CodedBag:
        assert isinstance(module, nn.EmbeddingBag)
        assert isinstance(stored, CodedTable)
        last, padding = bool(module.include_last_offset), module.padding_idx
        return CodedBag(stored, module.mode, last, padding)

    def describe(self, built: nn.Module) -> dict[str, Any]:
        assert isinstance(built, CodedBag)
        return {
            "mode": built.mode,
            "last": built.include_last_offset,
            "padding": built.padding_idx,
        }

    def rebuild(self, module: nn.Module, tree: Mapping[str, Any], stored: nn.Module) -> CodedBag:
        table = self.fits(module, stored)
        return CodedBag(table, tree["mode"], tree["last"], tree["padding"])


class _LayerReplacer(Replacer):
    """Layers of featemb: a trainable one is frozen, plain rows of a frozen one are encoded."""

    kind = "layer"
    built = FrozenEmbedding

    def refusal(self, module: nn.Module) -> str | None:
        """Refuse a frozen layer without plain rows."""
        if isinstance(module, FrozenEmbedding) and not plain_rows(module):
            return "its rows are stored by a codec already"
        return None

    def held(self, name: str, module: nn.Module) -> Layer:
        """Return the layer."""
        assert isinstance(module, (FeatureEmbedding, FrozenEmbedding))
        return Layer(name, module, module.schema)

    def build(self, module: nn.Module, stored: nn.Module) -> nn.Module:
        """Return the frozen layer itself."""
        return stored

    def stored(self, built: nn.Module) -> nn.Module:
        """Return the layer."""
        return built

    def describe(self, built: nn.Module) -> dict[str, Any]:
        """Return nothing: the layer says it all."""
        return {}

    def rebuild(self, module: nn.Module, tree: Mapping[str, Any], stored: nn.Module) -> nn.Module:
        """Return the layer, if it has the features of the module."""
        assert isinstance(stored, FrozenEmbedding)
        assert isinstance(module, (FeatureEmbedding, FrozenEmbedding))
        if stored.schema.without_counts() != module.schema.without_counts():
            raise FormatError("the layer in the file has other features than that of the model")
        return stored


register(nn.Embedding, _EmbeddingReplacer())
register(nn.EmbeddingBag, _BagReplacer())
register(FeatureEmbedding, _LayerReplacer())
register(FrozenEmbedding, _LayerReplacer())
