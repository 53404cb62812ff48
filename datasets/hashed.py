"""Raw values to ids by a seeded 64-bit hash: no vocabulary, and the same ids in any server.

The ids are those of an exported encoder with the rule "hash" (`featemb.export.Encoder`), which is
where tokens are defined: FNV-1a of a text's UTF-8 bytes, an integer itself, a double's bits. With
an id space of ``size`` ids, a token t of feature number f becomes::

    salt = mix64((seed << 20) + f + 1)
    id   = 1 + ((mix64(t + salt) AND (2^63 - 1)) mod (size - 1))

modulo 2^64, where mix64 is the finaliser of SplitMix64 (`featemb.hashing`). Without a size, the id
is the token's lowest 63 bits, which hash-addressed methods mix by themselves. A missing value has
id 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featemb.errors import DataError
from featemb.export.tokens import MISSING, Cells, value_tokens
from featemb.hashing import mix64_int

Words = npt.NDArray[np.uint64]
_LARGEST: Final = (1 << 63) - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """Ids by hashing instead of by vocabularies.

    Attributes:
        size: number of ids of each feature, 0 for missing values among them; None is unbounded
            (63 bits), which only hash-addressed methods can take.
        seed: of the hash into a size, ``0 <= seed < 2^43``.
    """

    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and not (_whole(self.size) and 2 <= self.size <= _LARGEST):
            raise DataError(f"hashing: size must be in 2 .. 2^63 - 1 or None, got {self.size!r}")
        if not (_whole(self.seed) and 0 <= self.seed < 1 << 43):
            raise DataError(f"hashing: seed must be in 0 .. 2^43 - 1, got {self.seed!r}")

    def ids(
        self, values: pa.Array, feature: int, cells: Cells | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the ids int64 ``[len(values)]`` of the values of a feature; 0 where null.

        Args:
            values: texts, int64 or float64.
            feature: number of the feature in the schema.
            cells: what they were in training; None: what they are. Integers may come as floats,
                as pandas holds them where one is missing.

        Raises:
            DataError: the values have another type.
        """
        tokens = value_tokens(values, cells or cells_of(values.type), str(feature))
        if self.size is None:
            return tokens & _LARGEST
        salt = np.uint64(mix64_int((self.seed << 20) + feature + 1))
        mixed = _mix(tokens.view(np.uint64) + salt) & np.uint64(_LARGEST)
        ids: npt.NDArray[np.int64] = (mixed % np.uint64(self.size - 1)).view(np.int64) + 1
        ids[tokens == MISSING] = 0
        return ids


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def cells_of(kind: pa.DataType) -> Cells:
    """Return what cells an encoder takes where values have a type.

    Raises:
        DataError: values of the type cannot be hashed.
    """
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_int64(kind):
        return "integer"
    if pa.types.is_float64(kind):
        return "float"
    raise DataError(f"values of type {kind} cannot be hashed: texts, int64 or float64 can")


def _mix(x: Words) -> Words:
    """`featemb.hashing.mix64` of an array."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
