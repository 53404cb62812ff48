"""Raw values to ids by a seeded 64-bit hash: no dictionary, and the same ids in any server.

The hash of a value with bytes w_1 ... w_k (a text's UTF-8 bytes, or the 8 little-endian bytes of an
int64 or a float64), filled up with zero bytes to whole words of 8 bytes, little-endian, of n bytes
before that::

    h_0 = mix64(seed + (n + 1) * 0x9E3779B97F4A7C15)
    h_i = mix64(h_{i-1} XOR w_i)
    id  = 1 + (h_k mod (size - 1)),   0 for a missing value

modulo 2^64 and unsigned, where mix64 is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA
2014, variant 13 by Stafford): ``x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27;
x *= 0x94D049BB133111EB; x ^= x >> 31``. ``size`` is the id space's, and 2^63 - 1 where none is
stated: ids fit in int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featemb.errors import DataError

UNBOUNDED = (1 << 63) - 1
Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = 8


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """Ids by hashing instead of by vocabularies.

    Attributes:
        size: number of ids of each feature, 0 for missing values among them; None is unbounded
            (63 bits), which only hash-addressed methods can take.
        seed: of the hash, ``0 <= seed < 2^63``.
    """

    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and not (_whole(self.size) and 2 <= self.size <= UNBOUNDED):
            raise DataError(f"hashing: size must be in 2 .. 2^63 - 1 or None, got {self.size!r}")
        if not (_whole(self.seed) and 0 <= self.seed <= UNBOUNDED):
            raise DataError(f"hashing: seed must be in 0 .. 2^63 - 1, got {self.seed!r}")

    def ids(self, values: pa.Array) -> npt.NDArray[np.int64]:
        """Return the ids int64 ``[len(values)]`` of texts, int64 or float64; 0 where null."""
        space = np.uint64((self.size or UNBOUNDED) - 1)
        ids = (hash64(values, self.seed) % space).view(np.int64) + 1
        if values.null_count:
            ids[values.is_null().to_numpy(zero_copy_only=False)] = 0
        return ids


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def hash64(values: pa.Array, seed: int = 0) -> Words:
    """Return the unsigned 64-bit hashes ``[len(values)]`` of texts, int64 or float64.

    What stands for a null is undefined.

    Raises:
        DataError: the values have another type.
    """
    kind = values.type
    if pa.types.is_int64(kind) or pa.types.is_float64(kind):
        numbers = values.fill_null(0).to_numpy()
        if numbers.dtype == np.float64:
            numbers = numbers + 0.0  # -0.0 equals 0.0
        return _mix(_start(np.full(len(values), _WORD), seed) ^ numbers.view(np.uint64))
    if not pa.types.is_string(kind):
        raise DataError(f"values of type {kind} cannot be hashed: texts, int64 or float64 can")
    return _hash_texts(values, seed)


def _hash_texts(values: pa.Array, seed: int) -> Words:
    _, offsets_buffer, data = values.buffers()
    count = len(values)
    if not count:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset : values.offset + count + 1]
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    text = np.zeros(last - first + _WORD, np.uint8)  # so that the last word ends inside of it
    if last > first:
        text[:-_WORD] = np.frombuffer(data, np.uint8)[first:last]
    # The word that begins at any byte, without a copy.
    words: Words = np.ndarray((len(text) - _WORD + 1,), np.dtype("<u8"), text.data, 0, (1,))
    hashes, starts = _start(lengths, seed), starts - first
    rows = np.arange(count)
    for done in range(0, int(lengths.max()), _WORD):
        if int(lengths.min()) <= done:  # some have ended
            rows = rows[lengths[rows] > done]
            left, word = lengths[rows] - done, words[starts[rows] + done]
            hashes[rows] = _mix(hashes[rows] ^ (word & _mask(left)))
        else:
            hashes = _mix(hashes ^ (words[starts + done] & _mask(lengths - done)))
    return hashes


def _mask(left: npt.NDArray[np.int64]) -> Words:
    """Bits of the bytes that belong to a text of which so many bytes are left."""
    unused = (_WORD - np.minimum(left, _WORD)) * 8
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> unused.astype(np.uint64)


def _start(lengths: npt.NDArray[np.int64], seed: int) -> Words:
    with np.errstate(over="ignore"):
        return _mix(np.uint64(seed) + (lengths.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _mix(x: Words) -> Words:
    """`featemb.hashing.mix64` of an array."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
