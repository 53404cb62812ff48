"""What a module holds that a codec can store: a table of rows, or a whole layer of featemb.

Shape letters: R rows, D numbers a row.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec
from featemb.codecs.floats import FloatRows
from featemb.codecs.weighted import CountingCodec
from featemb.conversion.coded import CodedTable
from featemb.errors import FeatembError
from featemb.frozen import FrozenEmbedding
from featemb.layer import FeatureEmbedding, meta_copy
from featemb.memory import module_bytes, tensor_bytes
from featemb.parts import Part, Source
from featemb.schema import Schema


class Held:
    """Abstract: one thing to store by a codec.

    Attributes:
        name: path of the module that holds it; of several, the first.
        others: paths of the modules that hold the same.
    """

    name: str
    others: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        raise NotImplementedError

    @property
    def before(self) -> int:
        """Bytes as it stands."""
        raise NotImplementedError

    def matrices(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the tables ``[R, D]`` to encode, each with its rows' weights ``[R]`` if known."""
        raise NotImplementedError

    def stored_bytes(self, codec: Codec) -> int:
        """Return the bytes by a codec; no table is read."""
        raise NotImplementedError

    def encoded(self, codec: Codec) -> nn.Module:
        """Return the stored form, called as what it replaces is, or what replaces it is made of.

        Raises:
            FeatembError: the numbers do not fit the format; the message names this.
        """
        try:
            return self._encoded(codec)
        except FeatembError as error:
            raise type(error)(f"table {self.name!r}: {error}") from error

    def _encoded(self, codec: Codec) -> nn.Module:
        raise NotImplementedError


@dataclass(frozen=True)
class Table(Held):
    """A plain table.

    Attributes:
        weight: ``[R, D]``.
        max_norm: rows longer than this are shortened to it, as the lookup did.
        norm_type: the p of that norm.
        counts: how often each row is read, ``[R]``, if known.
    """

    name: str
    weight: Tensor
    max_norm: float | None = None
    norm_type: float = 2.0
    others: tuple[str, ...] = ()
    counts: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return self.weight.dtype

    @property
    def before(self) -> int:
        """Bytes of the table."""
        return tensor_bytes(self.weight)

    @property
    def place(self) -> Hashable:
        """Where the numbers lie: equal of tables that are one."""
        return storage_of(self.weight)

    def matrices(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the table in fp32, its rows shortened to the largest norm."""
        table = self.weight.detach()
        if self.max_norm is not None:
            table = table.clone()
            every = torch.arange(len(table), device=table.device)
            torch.embedding_renorm_(table, every, self.max_norm, self.norm_type)
        return [(table.float(), self.counts)]

    def stored_bytes(self, codec: Codec) -> int:
        """Return the bytes by a codec."""
        return codec.stored_bytes(*self.shape)

    def _encoded(self, codec: Codec) -> CodedTable:
        ((table, counts),) = self.matrices()
        return CodedTable(encode(codec, table, counts), *self.shape, self.dtype, self.name)


@dataclass(frozen=True)
class Layer(Held):
    """A layer of featemb, trainable or frozen: all of its rows are stored by one codec.

    Attributes:
        layer: the layer.
        schema: its features, with counts where a codec weighs rows by them.
    """

    name: str
    layer: FeatureEmbedding | FrozenEmbedding
    schema: Schema
    others: tuple[str, ...] = ()
    _plain: list[FrozenEmbedding] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all plain tables, and the width asked for."""
        return (sum(len(one.weight) for one in plain_rows(self.frozen())), self.layer.dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return torch.float32

    @property
    def before(self) -> int:
        """Bytes of the layer's tensors."""
        return sum(module_bytes(self.layer).values())

    def frozen(self) -> FrozenEmbedding:
        """Return the layer's frozen form by its own codec."""
        if isinstance(self.layer, FrozenEmbedding):
            return self.layer
        if not self._plain:
            self._plain.append(self.layer.freeze())
        return self._plain[0]

    def matrices(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the plain rows of the frozen form."""
        return [(one.weight.float(), None) for one in plain_rows(self.frozen())]

    def stored_bytes(self, codec: Codec) -> int:
        """Return the bytes of the layer by a codec, counted on the meta device."""
        if isinstance(self.layer, FeatureEmbedding):
            layers = [one for one in self.layer.modules() if isinstance(one, FeatureEmbedding)]
            real = any(one.sizes_follow_values for one in layers)
            layer = self.layer if real else meta_copy(self.layer)
            return sum(module_bytes(layer.freeze(codec)).values())
        return sum(module_bytes(recoded(meta_copy(self.layer), codec, None)).values())

    def _encoded(self, codec: Codec) -> FrozenEmbedding:
        if isinstance(self.layer, FeatureEmbedding):
            return self.layer.freeze(codec)
        return recoded(self.layer, codec, self.schema)


class _Plain(nn.Module):
    """Plain rows of a frozen layer that are about to be encoded."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def frozen(self, codec: Codec) -> Part:
        """Encode the rows."""
        return codec.encode(self.weight.float())


def plain_rows(layer: FrozenEmbedding) -> list[FloatRows]:
    """Return the parts of a frozen layer that hold rows as floats."""
    return [one for one in layer.modules() if isinstance(one, FloatRows)]


@torch.no_grad()
def recoded(layer: FrozenEmbedding, codec: Codec, schema: Schema | None) -> FrozenEmbedding:
    """Return a frozen layer whose plain rows are encoded: the path of ``freeze``, once more.

    Args:
        layer: a frozen layer; its other parts are copied.
        codec: format of the rows that are floats now.
        schema: the features with their counts, for codecs that weigh rows; None weighs none.
    """
    inner = _opened(layer.source)
    source = inner.frozen(codec if schema is None else codec.counted(schema))  # type: ignore[operator]
    assert isinstance(source, Source)
    return FrozenEmbedding(layer.schema, layer.dim, layer.widths, source).eval()


def _opened(part: nn.Module) -> nn.Module:
    """Return a part with `_Plain` in place of plain rows; everything else is shared."""
    if isinstance(part, FloatRows):
        return _Plain(part.weight)
    if not isinstance(part, Part):
        return part
    fields = {}
    for name in part.fields():
        value = getattr(part, name)
        if isinstance(value, nn.ModuleList):
            value = [_opened(one) for one in value]
        elif isinstance(value, nn.Module):
            value = _opened(value)
        fields[name] = value
    return type(part)(**fields)


def encode(codec: Codec, table: Tensor, weights: Tensor | None) -> Part:
    """Return the stored form of a table ``[R, D]``, its rows weighed where the codec does so."""
    if weights is not None and isinstance(codec, CountingCodec):
        return codec.weighed(table, weights)
    return codec.encode(table)


def storage_of(tensor: Tensor) -> Hashable:
    """Return what is equal for tensors that are views of the same numbers in the same way."""
    if tensor.is_meta:
        return id(tensor)
    place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
    return (str(tensor.device), tensor.dtype, *place)
