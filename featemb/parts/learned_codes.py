"""`LearnedCodes`: rows in training whose parts are replaced by codewords, which learn with them.

Shape letters: N ids of all features, n of one, u distinct ones, D width, M parts of a vector,
C = D / M numbers a part, K codewords a part, R all codewords.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.keys import best_keys
from featemb.parts.base import Part, Source
from featemb.parts.coded import CodedAddress, CodewordRows
from featemb.parts.combine import Concat
from featemb.parts.granular import HotCodes, SharedCodedAddress
from featemb.parts.packed import PackedCodes
from featemb.parts.source import Lookup

if TYPE_CHECKING:
    from featemb.codebooks import Codebooks
    from featemb.codecs.base import Codec

_CHUNK = 1 << 16


class Read(NamedTuple):
    """What training read of a feature: distinct rows, their codewords, how often each was read.

    Attributes:
        rows: of the table, int64 ``[u]``.
        words: codewords of these, int64 ``[u, M]``.
        counts: int64 ``[u]``.
    """

    rows: Tensor
    words: Tensor
    counts: Tensor


class LearnedCodes(Source):
    """A table of queries whose M parts are replaced by codewords; some features keep their rows.

    With one table of codewords, the nearest one is taken (vector quantisation). With two, the
    first one holds keys and the second one values: the value of the key of the largest product is
    taken.

    In training the gradient passes straight through to the query, or with two tables through the
    softmax of the products. With one table the codewords are pulled to their queries by `gap`, and
    the gradient reaches them only if ``task_gradient``; with two it reaches the values as those of
    a lookup.

    Attributes:
        table: the queries ``[N, D]``, and the rows of whole features.
        books: one or two tables of codewords ``[R, C]``; none where all features are whole.
        hot: a part that numbers frequent ids, in a list; none where every id has every codeword.
        cardinalities: n of each feature.
        sizes: K of each feature; 0 where it is whole.
        tails: codewords, the first ones, that an id that is not frequent may have.
        numbers: number of frequent ids of each feature.
        offsets: first codeword of each feature.
        parts: M.
        shared: whether all parts of a vector have the same codewords.
        temperature: products are divided by it before the softmax.
        task_gradient: whether the gradient reaches the codewords of one table.
        read: what the last lookup in training read, for `gap`.
    """

    table: nn.Module
    books: nn.ModuleList
    hot: nn.ModuleList
    cardinalities: tuple[int, ...]
    sizes: tuple[int, ...]
    tails: tuple[int, ...]
    numbers: tuple[int, ...]
    offsets: tuple[int, ...]
    parts: int
    shared: bool
    temperature: float
    task_gradient: bool
    read: ClassVar[tuple[Read, ...]] = ()

    @classmethod
    def of(cls, sizes: Codebooks, cardinalities: tuple[int, ...], **fields: object) -> LearnedCodes:
        """Return the source of some sizes."""
        return cls(
            cardinalities=cardinalities,
            sizes=sizes.sizes,
            tails=sizes.tails,
            numbers=sizes.hot,
            offsets=sizes.offsets,
            parts=sizes.parts,
            **fields,
        )

    @property
    def weight(self) -> Tensor:
        """The table ``[N, D]``, without a gradient."""
        return _weight(self.table).detach()

    @property
    def width(self) -> int:
        """C."""
        return self.weight.shape[1] // self.parts

    @property
    def first(self) -> tuple[int, ...]:
        """First row of each feature in the table."""
        return (0, *accumulate(self.cardinalities))[:-1]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]`` for ids ``[...]`` and broadcastable features."""
        which = (feature + torch.zeros_like(ids)).reshape(-1)
        shape = (feature + ids).shape
        flat = ids.expand(shape).reshape(-1)
        self._forget()
        whole = torch.tensor([not size for size in self.sizes], device=ids.device)[which]
        places, found = [whole.nonzero()[:, 0]], []
        first = torch.tensor(self.first, device=ids.device)[which]
        found.append(self.table((first + flat)[places[0]]))
        for number, size in enumerate(self.sizes):
            if size:
                places.append((which == number).nonzero()[:, 0])
                found.append(self._coded(number, flat[places[-1]]))
        order = torch.cat(places)
        vectors = torch.cat(found)
        # place p of the order has vector p: gathering by the inverse is their order back
        back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order)).to(order))
        return vectors[back].view(*shape, vectors.shape[1])

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]`` for ids ``[B, F]``: column f belongs to feature f."""
        self._forget()
        whole = [f for f, size in enumerate(self.sizes) if not size]
        first = torch.tensor(self.first, device=ids.device)
        rows = self.table(ids[:, whole] + first[whole])
        columns = dict(zip(whole, rows.unbind(1), strict=True))
        for f, size in enumerate(self.sizes):
            if size:
                columns[f] = self._coded(f, ids[:, f])
        return torch.stack([columns[f] for f in range(len(columns))], 1)

    def gap(self, of_queries: bool = False) -> Tensor:
        """Return ``mean((v - sg(q))^2)`` over what the last lookup in training read.

        Args:
            of_queries: whether it is ``mean((q - sg(v))^2)``, which pulls the queries.
        """
        total = self.weight.new_zeros(())
        numbers = 0
        for one in self.read:
            if of_queries:
                apart = self.table(one.rows) - self.books[0](one.words).detach().flatten(1)
            else:
                apart = self.books[0](one.words).flatten(1) - self.weight[one.rows]
            total = total + (apart.square().sum(1) * one.counts).sum()
            numbers += int(one.counts.sum()) * apart.shape[1]
        return total / max(1, numbers)

    def codes(self, number: int, ids: Tensor, exact: bool) -> Tensor:
        """Return the codes int64 ``[n, M]`` of ids ``[n]`` of a feature; see `best_keys`."""
        queries = self.weight[self.first[number] + ids]
        queries = queries.view(len(ids), self.parts, self.width)
        keys = self._book(number, _weight(self.books[0]).detach())
        allowed = None
        if self.tails[number] < self.sizes[number]:
            frequent = self.hot[0](ids, torch.tensor(number, device=ids.device)) >= 0
            allowed = torch.where(frequent, self.sizes[number], self.tails[number])
        dot = len(self.books) > 1
        keys = F.normalize(keys, dim=-1) if dot else keys
        found = [
            best_keys(queries[:, m], keys[m], dot=dot, allowed=allowed, exact=exact)
            for m in range(self.parts)
        ]
        return torch.stack(found, 1)

    def frozen(self, codec: Codec) -> Part:
        """Return codes and codewords, whatever the codec.

        Raises:
            DataError: a row or codeword is not finite.
        """
        table, books = self.weight, [_weight(book).detach() for book in self.books]
        for one in (table, *books):
            check_finite(one)
        blocks = books[-1:]
        offsets = list(self.offsets)
        for f, (n, first) in enumerate(zip(self.cardinalities, self.first, strict=True)):
            if not self.sizes[f]:
                offsets[f] = sum(len(block) for block in blocks)
                blocks.append(table[first : first + n].reshape(-1, self.width))
        kind = SharedCodedAddress if self.shared else CodedAddress
        address = kind(
            offsets=tuple(offsets), sizes=self.sizes, parts=self.parts, codes=self._stored(codec)
        )
        rows = CodewordRows(weight=torch.cat(blocks))
        return Lookup(address=address, rows=rows, combine=Concat())

    def _forget(self) -> None:
        self.read = ()  # type: ignore[misc]  # hides the default

    def _coded(self, number: int, ids: Tensor) -> Tensor:
        """Return the vectors ``[n, D]`` of ids ``[n]`` of a feature that is not whole."""
        distinct, inverse, counts = torch.unique(ids, return_inverse=True, return_counts=True)
        with torch.no_grad():
            codes = self.codes(number, distinct, exact=not self.training)
            step = 0 if self.shared else self.sizes[number]
            words = codes + self.offsets[number]
            words = words + step * torch.arange(self.parts, device=ids.device)
        vectors: Tensor = self.books[-1](words).flatten(1)
        if self.training:
            rows = self.first[number] + distinct
            self.read = (*self.read, Read(rows, words, counts))  # type: ignore[misc]
            queries = self.table(rows)
            if len(self.books) == 1:
                through = queries
                vectors = vectors if self.task_gradient else vectors.detach()
            else:
                through = self._soft(number, queries)
            vectors = vectors + (through - through.detach())  # exactly the codewords
        return F.embedding(inverse, vectors)

    def _soft(self, number: int, queries: Tensor) -> Tensor:
        """Return the mean values ``[u, D]`` under the softmax of the products with the keys."""
        keys, values = (self._book(number, _weight(one)) for one in self.books)
        parts = queries.view(len(queries), self.parts, self.width).transpose(0, 1)
        products = F.normalize(parts, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2)
        share = torch.softmax(products / self.temperature, -1)
        return (share @ values.detach()).transpose(0, 1).flatten(1)

    def _book(self, number: int, weight: Tensor) -> Tensor:
        """Return the codewords of a feature ``[M, K, C]`` of a table ``[R, C]``."""
        size, first = self.sizes[number], self.offsets[number]
        if self.shared:
            return weight[first : first + size].expand(self.parts, -1, -1)
        return weight[first : first + self.parts * size].view(self.parts, size, -1)

    def _stored(self, codec: Codec) -> Part:
        """Return the codes of all ids: part (index, feature) -> code."""
        device, parts = self.weight.device, self.parts
        scales = tuple(1 << max(0, tail - 1).bit_length() for tail in self.tails)
        low = [scale.bit_length() - 1 for scale in scales]
        high = [max(0, k - 1).bit_length() - b for k, b in zip(self.sizes, low, strict=True)]
        coded = zip(self.cardinalities, self.sizes, strict=True)
        counts = [n * parts if size else 0 for n, size in coded]
        more = [n * parts for n in self.numbers]
        packed = PackedCodes.empty([*counts, *more], [*low, *high], device)
        if not self.weight.is_meta:
            for number, size in enumerate(self.sizes):
                if size:
                    self._write(packed, number, scales[number])
        if not any(high):
            return packed
        hot = self.hot[0]
        assert isinstance(hot, Part)
        return HotCodes(
            hot=hot.frozen(codec),
            codes=packed,
            parts=parts,
            before=(0, *accumulate(self.numbers))[:-1],
            scales=scales,
        )

    def _write(self, packed: PackedCodes, number: int, scale: int) -> None:
        """Write the codes of all ids of a feature."""
        n, further = self.cardinalities[number], []
        for at in range(0, n, _CHUNK):
            ids = torch.arange(at, min(n, at + _CHUNK), device=self.weight.device)
            codes = self.codes(number, ids, exact=True)
            packed.write((codes % scale).flatten(), number, at * self.parts)
            if self.numbers[number]:
                frequent = self.hot[0](ids, torch.tensor(number, device=ids.device)) >= 0
                further.append(codes[frequent] // scale)
        if further:
            packed.write(torch.cat(further).flatten(), number + len(self.sizes))


def _weight(table: nn.Module) -> Tensor:
    weight = table.weight
    assert isinstance(weight, Tensor)
    return weight
