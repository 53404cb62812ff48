"""Parts: the vocabulary of which every layer, trainable or frozen, is made."""

from featemb.parts.address import HashAddress, OffsetAddress, SharedHashAddress
from featemb.parts.base import Part
from featemb.parts.combine import Concat, Lookup

__all__ = [
    "Concat",
    "HashAddress",
    "Lookup",
    "OffsetAddress",
    "Part",
    "SharedHashAddress",
]
