"""Parts: the vocabulary of which every layer, trainable or frozen, is made."""

from featemb.parts.address import (
    DigitAddress,
    DigitHashAddress,
    FeatureAddress,
    HashAddress,
    OffsetAddress,
    SharedHashAddress,
)
from featemb.parts.base import Part, Source
from featemb.parts.combine import Concat, Mean, Multiply, Stack, Sum
from featemb.parts.source import DigitLookup, Lookup, Plus, Product, Split, Weighted

__all__ = [
    "Concat",
    "DigitAddress",
    "DigitHashAddress",
    "DigitLookup",
    "FeatureAddress",
    "HashAddress",
    "Lookup",
    "Mean",
    "Multiply",
    "OffsetAddress",
    "Part",
    "Plus",
    "Product",
    "SharedHashAddress",
    "Source",
    "Split",
    "Stack",
    "Sum",
    "Weighted",
]
