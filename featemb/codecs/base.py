"""`Codec`: turns a trained table into the rows part of a frozen layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featemb.config import Config, names
from featemb.errors import ConfigError, DataError, nearest
from featemb.grammar import read
from featemb.parts.base import Part

if TYPE_CHECKING:
    from featemb.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Codec(Config):
    """Base of the codecs' configurations; `encode` makes the stored form.

    A codec may fit its rows to how often they are read. So a layer tells it the counts of ids
    (`counted`), and the parts tell on the way to a table which of them read it, and how (`only`,
    `at`, `rows`). All of these return the codec to go on with: this one where counts do not matter.
    """

    def encode(self, table: Tensor) -> Part:
        """Return the stored form of a table ``[R, C]``; its call gathers rows as floats.

        Raises:
            DataError: a row is not finite or out of the format's range.
        """
        raise NotImplementedError

    def stored_bytes(self, rows: int, width: int) -> int:
        """Return the bytes of a table ``[rows, width]``: those of its stored form."""
        part = self.encode(torch.empty(rows, width, device="meta"))
        return sum(one.numel() * one.element_size() for one in part.buffers())

    def error_bound(self, table: Tensor) -> Tensor:
        """Return the largest absolute error of each element, broadcastable to ``[R, C]``."""
        raise NotImplementedError

    def counted(self, schema: Schema) -> Codec:
        """Return the codec for tables that these features' ids are going to read."""
        return self

    def only(self, wanted: Sequence[bool]) -> Codec:
        """Return the codec for some of the features."""
        return self

    def at(self, address: nn.Module) -> Codec:
        """Return the codec for a table whose rows an address, (ids, feature) -> rows, reads."""
        return self

    def inside(self) -> Codec:
        """Return the codec for a layer that stores the rows of another one."""
        return self

    def rows(self, places: Tensor) -> Codec:
        """Return the codec for some of the rows, int64 ``[m]``, in this order."""
        return self


def codec_by_name(text: str) -> Codec:
    """Return a codec by its text, such as ``int8`` or ``pq(parts=8)``.

    Raises:
        ConfigError: there is no such codec, or a setting is not allowed.
    """
    name = text.partition("(")[0].strip()
    if name not in names("codec"):
        raise ConfigError(f"unknown codec {name!r}; {nearest(name, names('codec'))}")
    codec, *more = read(text)
    if more or not isinstance(codec, Codec):
        raise ConfigError(f"{text!r} must be one codec; codecs: {', '.join(names('codec'))}")
    return codec


def check_finite(table: Tensor) -> None:
    """Refuse a table ``[R, C]`` that holds NaN or infinity.

    Raises:
        DataError: names the first such row.
    """
    if table.is_meta:
        return
    wrong = ~torch.isfinite(table).all(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(f"row {row} of the table holds NaN or infinity; rows must be finite")
