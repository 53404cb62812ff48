"""ROBE: vectors are blocks of one circular array of numbers, at any offset."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.hashing import bucket, mix64, salts
from featemb.parts.base import Source
from featemb.parts.hot import single_bits

_BITS = 64


class RobeBlocks(Source):
    """K blocks of Z numbers, each read from a hashed position of a circular array.

    The array of a feature is rows of Z numbers; a block that begins at number p reads the end of
    row ``p div Z`` and the beginning of the next one, and wraps from the last row to the first.

    Attributes:
        rows: rows ``[...]`` -> vectors ``[..., Z]``.
        offsets: first row of each feature's array.
        sizes: rows of each feature's array.
        dim: width of a vector.
        chunk: Z, numbers a block.
        signs: whether each number of a vector is multiplied by a hashed sign.
        seed: int64 scalar, seed of the salts.
    """

    memory_parts: ClassVar[dict[str, str]] = {"seed": "seeds"}
    by_number: ClassVar[bool] = True
    rows: nn.Module
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dim: int
    chunk: int
    signs: bool
    seed: Tensor

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        features, chunk = len(self.sizes), self.chunk
        blocks = -(-self.dim // chunk)
        words = -(-self.dim // _BITS) if self.signs else 0
        salt = salts(self.seed, features * (blocks + words)).view(features, -1)[feature]
        constants = torch.tensor([self.offsets, self.sizes], device=ids.device)
        offset, size = constants[:, feature][..., None]
        position = bucket(ids[..., None], salt[..., :blocks], size * chunk)
        row, shift = position // chunk, position % chunk
        if chunk == 1:
            numbers = self.rows(offset + row)
        else:
            pair = self.rows(offset[..., None] + torch.stack([row, (row + 1) % size], -1))
            inside = shift[..., None] + torch.arange(chunk, device=ids.device)
            numbers = pair.flatten(-2).gather(-1, inside)
        vectors: Tensor = numbers.flatten(-2)[..., : self.dim]
        if self.signs:
            vectors = vectors * self._signs(ids, salt[..., blocks:], vectors.dtype)
        return vectors

    def _signs(self, ids: Tensor, salt: Tensor, dtype: torch.dtype) -> Tensor:
        """Return +1 or -1 for every number of a vector: the bits of hashes of the id."""
        hashes = mix64(ids[..., None] + salt)[..., None]
        bits = torch.tensor(single_bits()[: self.dim], device=ids.device)  # no shift in ONNX
        signs = 1 - 2 * ((hashes & bits) != 0).to(dtype)
        return signs.flatten(-2)[..., : self.dim]
