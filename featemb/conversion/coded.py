"""What stands in a converted model where `nn.Embedding` and `nn.EmbeddingBag` stood.

Shape letters: R rows of a table, D numbers a row, N ids, B bags.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from featemb.codecs.integers import IntRows
from featemb.conversion.bags import Bags
from featemb.errors import IdError, SchemaError
from featemb.ids import tracing
from featemb.kernels import pool_fused
from featemb.parts import Part


class CodedTable(nn.Module):
    """A table in the form that a codec gave it; tied modules share one.

    Moving it to a device moves its rows. A change of type (``half()``, ``double()``) only changes
    the type of the answers: codes and scales stay as they were encoded.

    Args:
        rows: int64 ``[N]`` -> floats ``[N, D]``: a codec's part.
        num_rows: R.
        width: D.
        dtype: of the answers.
        name: of the table, for messages.
    """

    like: Tensor

    def __init__(
        self, rows: Part, num_rows: int, width: int, dtype: torch.dtype, name: str
    ) -> None:
        super().__init__()
        self.rows = rows
        self.num_rows = num_rows
        self.width = width
        self.name = name
        device = next(rows.buffers()).device
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of ids ``[...]``, int32 or int64.

        Raises:
            IdError: an id is negative or not below R.
            SchemaError: the ids are no integers.
        """
        return self.decoded(self.checked(ids))

    def decoded(self, ids: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of checked ids."""
        vectors: Tensor = self.rows(ids)
        return vectors if vectors.dtype == self.like.dtype else vectors.to(self.like.dtype)

    def summed(self, ids: Tensor, bags: Bags, weights: Tensor | None) -> Tensor | None:
        """Return sums of checked ids by bags, ``[B, D]``, where one kernel reads and adds them."""
        rows, offsets = self.rows, bags.offsets
        if not isinstance(rows, IntRows) or offsets is None or self.like.dtype != torch.float32:
            return None
        last = bags.include_last_offset
        return pool_fused(rows.rows, ids, offsets, rows.bits, rows.width, weights, last)

    def whole(self) -> Tensor:
        """Return the whole table ``[R, D]``, made anew at every call."""
        return self.decoded(torch.arange(self.num_rows, device=self.like.device))

    def checked(self, ids: Tensor) -> Tensor:
        """Return ids as int64 if they are in range (see `forward`)."""
        if ids.dtype not in (torch.int32, torch.int64):
            raise SchemaError(f"table {self.name!r}: ids must be int64 or int32, got {ids.dtype}")
        if tracing():
            # not every codec's lookup fails at a wrong id: this check stays in the program
            good = ((ids >= 0) & (ids < self.num_rows)).all()
            torch._assert_async(good, f"table {self.name!r}: an id is out of range")
            return ids.long()
        if ids.numel():
            low, high = (int(one) for one in ids.aminmax())
            if low < 0 or high >= self.num_rows:
                raise IdError(
                    f"table {self.name!r}: id {low if low < 0 else high} is out of range "
                    f"(0 <= id < {self.num_rows})"
                )
        return ids.long()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodedTable:
        def moved(one: Tensor) -> Tensor:
            found = fn(one.new_empty(0))
            return fn(one) if found.dtype == one.dtype else one.to(found.device)

        self.rows._apply(moved)  # type: ignore[no-untyped-call]
        self.like = fn(self.like)
        return self

    def extra_repr(self) -> str:
        """Shape and type, for printing."""
        return f"{self.num_rows} x {self.width}, gives {self.like.dtype}"


class _Coded(nn.Module):
    """What both modules share.

    Args:
        table: the coded table.
        padding: the id of padding, or None.
        zero: whether the padding's vector is exactly zero whatever the codec makes of it.
    """

    def __init__(self, table: CodedTable, padding: int | None, zero: bool) -> None:
        super().__init__()
        self.table = table
        self.padding_idx = padding
        self.zero_padding = zero

    @property
    def num_embeddings(self) -> int:
        """R."""
        return self.table.num_rows

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.table.width

    @property
    def weight(self) -> Tensor:
        """The whole table ``[R, D]``, decoded anew at every read: for code that looks at it."""
        return self._zeroed(self.table.whole(), None)

    def vectors(self, ids: Tensor) -> Tensor:
        """Return ``[..., D]`` for ids ``[...]``."""
        return self._zeroed(self.table.decoded(self.table.checked(ids)), ids)

    def _zeroed(self, vectors: Tensor, ids: Tensor | None) -> Tensor:
        if not self.zero_padding:
            return vectors
        if ids is None:
            ids = torch.arange(len(vectors), device=vectors.device)
        return vectors.masked_fill(ids.eq(self.padding_idx or 0)[..., None], 0.0)

    def extra_repr(self) -> str:
        """What is unusual, for printing."""
        return "" if self.padding_idx is None else f"padding_idx={self.padding_idx}"


class CodedEmbedding(_Coded):
    """`nn.Embedding` over a coded table: ids ``[...]`` give vectors ``[..., D]``.

    Args:
        table: the coded table.
        padding: the id of padding, or None.
        zero: whether the padding's vector is exactly zero whatever the codec makes of it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Look ids up.

        Args:
            input: int64 or int32 of any shape.

        Raises:
            IdError: an id is out of range.
        """
        return self.vectors(input)


class CodedBag(_Coded):
    """`nn.EmbeddingBag` over a coded table, with all of its forms of input.

    Args:
        table: the coded table.
        mode: "sum", "mean" or "max".
        include_last_offset: whether offsets end with the number of ids.
        padding: the id that no bag counts, or None.
    """

    def __init__(
        self, table: CodedTable, mode: str, include_last_offset: bool, padding: int | None
    ) -> None:
        super().__init__(table, padding, zero=False)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look bags of ids up and pool them; the arguments of `nn.EmbeddingBag`.

        Args:
            input: ids ``[N]`` with offsets, or ``[B, L]`` without.
            offsets: int64 ``[B]``, where each bag begins (``[B + 1]`` with the last offset).
            per_sample_weights: of the ids, in the input's shape; for sums only.

        Raises:
            IdError: an id is out of range.
        """
        ids = self.table.checked(input.reshape(-1))
        places = torch.arange(ids.shape[0], device=ids.device).view(input.shape)
        begins = None if offsets is None else offsets.long()
        bags = Bags(places, begins, self.include_last_offset)
        if self.padding_idx is None and self.mode != "max" and not tracing() and ids.shape[0]:
            found = self._fast(ids, bags, per_sample_weights)
            if found is not None:
                return found
        vectors = self.table.decoded(ids)
        if not (tracing() or ids.shape[0]):  # torch pools nothing of a table of no rows
            vectors = vectors.new_zeros(1, self.table.width)
        elif self.padding_idx is not None:
            return self._without_padding(vectors, ids != self.padding_idx, bags, per_sample_weights)
        return bags.pooled(vectors, self.mode, per_sample_weights)

    def _fast(self, ids: Tensor, bags: Bags, weights: Tensor | None) -> Tensor | None:
        """Pool without a vector an id in between, where there is a kernel for it."""
        if weights is not None and (self.mode == "mean" or weights.shape != bags.places.shape):
            return None  # torch tells what is wrong
        if ids.device.type != "cpu" or (bags.offsets is None) != (bags.places.dim() == 2):
            return None
        flat = bags.flat()
        total = self.table.summed(ids, flat, None if weights is None else weights.reshape(-1))
        if total is None or self.mode == "sum":
            return total
        return total / flat.sizes().clamp(min=1)[:, None]

    def _without_padding(
        self, vectors: Tensor, real: Tensor, bags: Bags, weights: Tensor | None
    ) -> Tensor:
        real = real[:, None]
        if self.mode == "max":
            highest = bags.pooled(vectors.masked_fill(~real, -torch.inf), "max", None)
            return highest.masked_fill(highest == -torch.inf, 0.0)
        total = bags.pooled(vectors.masked_fill(~real, 0.0), "sum", weights)
        if self.mode == "sum":
            return total
        return total / bags.pooled(real.to(vectors), "sum", None).clamp(min=1)

    def extra_repr(self) -> str:
        """Mode, for printing."""
        return ", ".join(filter(None, (f"mode={self.mode}", super().extra_repr())))
