"""Sources: (ids, feature) -> vectors, and how two of them make one."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featemb.parts.base import Part, Source

if TYPE_CHECKING:
    from featemb.codecs.base import Codec


class Lookup(Source):
    """``combine(rows(address(ids, feature)))``: the three steps of a feature embedding.

    Attributes:
        address: (ids, feature) -> rows ``[..., L]``.
        rows: rows ``[..., L]`` -> vectors ``[..., L, C]``: a `RowTable` in training, a codec's
            part when frozen.
        combine: vectors ``[..., L, C]`` -> ``[..., D]``.
    """

    by_number: ClassVar[bool] = True
    address: nn.Module
    rows: nn.Module
    combine: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]`` for ids ``[...]`` and broadcastable features."""
        vectors: Tensor = self.combine(self.rows(self.address(ids, feature)))
        return vectors

    def frozen(self, codec: Codec) -> Part:
        """Encode the rows for what reads them."""
        return super().frozen(codec.at(self.address))


class DigitLookup(Source):
    """Rows of an id's digits, multiplied or added; a feature may use the first few digits only.

    Attributes:
        address: (ids, feature) -> rows ``[..., L]``.
        rows: rows ``[..., L]`` -> vectors ``[..., L, C]``.
        used: number of digits of each feature.
        multiply: whether to multiply rather than add.
    """

    by_number: ClassVar[bool] = True
    address: nn.Module
    rows: nn.Module
    used: tuple[int, ...]
    multiply: bool

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        digits = self.rows(self.address(ids, feature)).unbind(-2)
        vectors: Tensor = digits[0]
        used = torch.tensor(self.used, device=ids.device)[feature][..., None]
        neutral = 1.0 if self.multiply else 0.0
        for number, digit in enumerate(digits[1:], start=1):
            other = torch.where(used > number, digit, neutral)
            vectors = vectors * other if self.multiply else vectors + other
        return vectors

    def frozen(self, codec: Codec) -> Part:
        """Encode the rows for what reads them."""
        return super().frozen(codec.at(self.address))


class Product(Source):
    """Elementwise product of two sources; one of them may have width 1.

    Attributes:
        left: a source.
        right: a source.
    """

    left: nn.Module
    right: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        product: Tensor = self.left(ids, feature) * self.right(ids, feature)
        return product


class Plus(Source):
    """Sum of two sources; one of them may have width 1.

    Attributes:
        left: a source.
        right: a source.
    """

    left: nn.Module
    right: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        total: Tensor = self.left(ids, feature) + self.right(ids, feature)
        return total


class Weighted(Source):
    """Weighted sum of L looked-up vectors: ``e = sum_l w_l v_l``.

    Attributes:
        vectors: a source of ``[..., L, C]`` (see `Stack`).
        weights: a source of ``[..., L]``.
    """

    vectors: nn.Module
    weights: nn.Module

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        weights: Tensor = self.weights(ids, feature)
        total: Tensor = (self.vectors(ids, feature) * weights[..., None]).sum(-2)
        return total


class Split(Source):
    """Each feature is served by one of several sources; narrower vectors are filled up with zeros.

    A source is made for its own features only, numbered from 0 in their order.

    Attributes:
        sources: S sources, each of one feature at least.
        which: number of each feature's source.
        dim: width D of the vectors.
    """

    sources: nn.ModuleList
    which: tuple[int, ...]
    dim: int

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``.

        In training each source sees its own ids only. Otherwise all compute and one is taken.
        """
        local = torch.tensor(_numbers(self.which), device=ids.device)[feature]
        which = torch.tensor(self.which, device=ids.device)[feature]
        if self.training:
            return self._apart(ids, local, which)
        vectors: Tensor | None = None
        for number, source in enumerate(self.sources):
            own = which == number
            found = self._wide(source(torch.where(own, ids, 0), torch.where(own, local, 0)))
            vectors = found if vectors is None else torch.where(own[..., None], found, vectors)
        assert vectors is not None
        return vectors

    def _apart(self, ids: Tensor, local: Tensor, which: Tensor) -> Tensor:
        shape = (ids + local).shape
        ids, local, which = (one.expand(shape).reshape(-1) for one in (ids, local, which))
        places, found = [], []
        for number, source in enumerate(self.sources):
            own = (which == number).nonzero()[:, 0]
            places.append(own)
            found.append(self._wide(source(ids[own], local[own])))
        vectors = torch.cat(found)
        joined = vectors.new_empty(vectors.shape).index_copy(0, torch.cat(places), vectors)
        return joined.view(*shape, self.dim)

    def frozen(self, codec: Codec) -> Part:
        """Freeze each source for its own features."""
        sources = [
            source.frozen(codec.only([one == number for one in self.which]))  # type: ignore[operator]
            for number, source in enumerate(self.sources)
        ]
        return type(self)(sources=sources, which=self.which, dim=self.dim)

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]``; each source computes its own columns only."""
        columns: list[list[int]] = [[] for _ in self.sources]
        for feature, number in enumerate(self.which):
            columns[number].append(feature)
        parts = [
            self._wide(source.dense(ids[:, own]))  # type: ignore[operator]  # a source
            for source, own in zip(self.sources, columns, strict=True)
        ]
        order = sorted(range(len(self.which)), key=list(chain(*columns)).__getitem__)
        return torch.cat(parts, 1)[:, order]

    def used_widths(self, num_features: int, dim: int) -> tuple[int, ...]:
        """Return each source's own widths for its features."""
        own = [
            source.used_widths(self.which.count(number), _width(source))  # type: ignore[operator]
            for number, source in enumerate(self.sources)
        ]
        places = zip(self.which, _numbers(self.which), strict=True)
        return tuple(own[number][place] for number, place in places)

    def _wide(self, vectors: Tensor) -> Tensor:
        missing = self.dim - vectors.shape[-1]
        return torch.nn.functional.pad(vectors, (0, missing)) if missing else vectors


def _width(source: nn.Module) -> int:
    """Return the width of a source's vectors; every feature has an id 0."""
    device = next(chain(source.buffers(), source.parameters())).device
    first = torch.zeros(1, dtype=torch.int64, device=device)
    return int(source(first, first).shape[-1])


def _numbers(which: tuple[int, ...]) -> list[int]:
    """Number the features of each source from 0."""
    seen: dict[int, int] = {}
    numbers = []
    for number in which:
        numbers.append(seen.get(number, 0))
        seen[number] = numbers[-1] + 1
    return numbers
