"""`Codec`: turns a trained table into the rows part of a frozen layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featemb.config import Config, make, names
from featemb.errors import ConfigError, DataError, nearest
from featemb.parts.base import Part


@dataclass(frozen=True, kw_only=True)
class Codec(Config):
    """Base of the codecs' configurations; `encode` makes the stored form."""

    def encode(self, table: Tensor) -> Part:
        """Return the stored form of a table ``[R, C]``; its call gathers rows as floats.

        Raises:
            DataError: a row is not finite or out of the format's range.
        """
        raise NotImplementedError

    def error_bound(self, table: Tensor) -> Tensor:
        """Return the largest absolute error of each element, broadcastable to ``[R, C]``."""
        raise NotImplementedError


def codec_by_name(name: str) -> Codec:
    """Return a codec with its default settings, such as ``int8``.

    Raises:
        ConfigError: there is no such codec.
    """
    if name not in names("codec"):
        raise ConfigError(f"unknown codec {name!r}; {nearest(name, names('codec'))}")
    codec = make(name, {})
    assert isinstance(codec, Codec)
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
