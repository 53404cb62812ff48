"""`RowTable`: where trainable rows live, and the row-wise gather.

Shape letters: R rows, C width of a row, N looked-up rows, U distinct rows among them.

Two kinds of gradient exist. *Dense* (the default, works with every torch optimizer) is a tensor of
the table's size. *Row gradients* are a coalesced sparse tensor of the touched rows only, so that a
step costs O(rows touched) and not O(table); the optimizers of `featemb.optim` that understand them
switch them on for the tables that they are given.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from featemb.ids import tracing

if TYPE_CHECKING:
    from featemb.codecs.base import Codec
    from featemb.parts.base import Part
    from featemb.starting import Start

_INT32_ROWS = 2**31 - 1
_WIDE_BYTES = 16
_OWNERS = WeakTensorKeyDictionary()


class RowTable(nn.Module):
    """A trainable table of rows.

    Args:
        num_rows: R.
        width: C, the width of a row.
        init: rows start uniform in ``[center - init, center + init]``.
        generator: source of the initial values; None leaves them uninitialised (meta device).
        center: mean of the initial values; factors of products start around 1.

    Attributes:
        weight: float32 parameter ``[R, C]``.
        start: how rows start that are made later (see `featemb.starting`), else None.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "rows"}
    start: Start | None = None

    def __init__(
        self,
        num_rows: int,
        width: int,
        init: float,
        generator: torch.Generator | None,
        center: float = 0.0,
    ) -> None:
        super().__init__()
        device = None if generator is None else generator.device
        weight = torch.empty(num_rows, width, device=device)
        if generator is not None:
            weight.uniform_(center - init, center + init, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows; int64 of any shape ``[...]`` gives ``[..., C]``."""
        flat = rows.reshape(-1)
        weight = self.weight
        if row_gradients(weight) and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            vectors = _gather_for_training(weight, flat)
        elif torch.is_grad_enabled() and weight.requires_grad:
            vectors = F.embedding(flat, weight)
        else:
            vectors = gather_rows(weight, flat)
        return vectors.view(*rows.shape, weight.shape[1])

    @staticmethod
    def of(weight: nn.Parameter) -> RowTable:
        """Return a table of rows that are there."""
        table = RowTable(1, 1, init=0.0, generator=None)
        table.weight = weight
        return table

    def frozen(self, codec: Codec) -> Part:
        """Return the stored form of the rows."""
        return codec.encode(self.weight)

    def extra_repr(self) -> str:
        """Shape, for printing."""
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"


def row_tables(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield path, parent and name of every `RowTable` of a model."""
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, RowTable):
                yield f"{path}.{name}".strip("."), parent, name


# Compilers know no sparse gradient: they break the graph here. torch.compiler.disable would do the
# same, but loads the compiler at import.
@torch._disable_dynamo  # type: ignore[attr-defined]
def _gather_for_training(weight: Tensor, rows: Tensor) -> Tensor:
    vectors: Tensor = _RowGather.apply(weight, rows)  # type: ignore[no-untyped-call]
    return vectors


def row_gradients(parameter: Tensor) -> bool:
    """Whether a table's gradients are row gradients (see the module's text)."""
    return bool(getattr(parameter, "row_gradients", False))


def claim(parameter: Tensor, optimizer: torch.optim.Optimizer, row_gradients: bool) -> None:
    """Note which optimizer owns a parameter, and which kind of gradient it wants of a table."""
    parameter.row_gradients = row_gradients  # type: ignore[attr-defined]
    _OWNERS[parameter] = weakref.ref(optimizer)


@torch.no_grad()
def copy_rows(parameter: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy rows of a table onto others, weights and optimizer state alike.

    Args:
        parameter: a table ``[R, C]``.
        source: int64 ``[K]``, rows to read, or ``[K, L]``: the mean of L rows is copied. All are
            read before any is written.
        target: int64 ``[K]``, rows to overwrite; a repeated one has the same source.
    """
    for tensor in (parameter, *_row_state(parameter)):
        values = tensor[source]
        tensor[target] = values.mean(1) if source.dim() > 1 else values


@torch.no_grad()
def reset_rows(parameter: Tensor, rows: Tensor, values: Tensor) -> None:
    """Overwrite rows int64 ``[K]`` of a table by ``[K, C]``; their optimizer state becomes zero."""
    parameter[rows] = values
    for tensor in _row_state(parameter):
        tensor[rows] = 0


def _row_state(parameter: Tensor) -> list[Tensor]:
    """State tensors with an entry a row, in the featemb optimizer that owns a table."""
    owner = _OWNERS.get(parameter)  # type: ignore[no-untyped-call]
    optimizer = None if owner is None else owner()
    if optimizer is None:
        return []
    state = optimizer.state.get(parameter, {}).values()
    rows = parameter.shape[0]
    return [s for s in state if isinstance(s, Tensor) and s.dim() > 0 and s.shape[0] == rows]


def gather_rows(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]`` for int64 ``[N]``, without a gradient; the fastest kernel on each device."""
    if table.device.type != "cpu" or tracing() or not table.is_floating_point():
        return F.embedding(rows, table)
    if table.shape[1] == 1 and table.is_contiguous():
        return table.view(-1).index_select(0, rows)[:, None]
    # bags of one row each: this kernel prefetches, which halves the time on large tables
    starts = torch.arange(rows.numel())
    return F.embedding_bag(rows, table, starts, mode="sum")


def write_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """``table[rows] = values`` in place, for distinct rows int64 ``[U]`` and values ``[U, C]``."""
    wide = table.shape[1] * table.element_size()
    if table.device.type != "cpu" or wide % _WIDE_BYTES or not table.is_contiguous():
        table.index_copy_(0, rows, values)
        return
    # copying 16-byte elements by a flat index is several times faster than copying short rows
    per_row = wide // _WIDE_BYTES
    index = (rows[:, None] * per_row + torch.arange(per_row)).view(-1)
    flat = table.view(torch.complex128).view(-1)
    flat.index_copy_(0, index, values.contiguous().view(torch.complex128).view(-1))


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Split a row gradient into its distinct rows int64 ``[U]`` and their gradients ``[U, C]``."""
    rows, values = grad._indices()[0], grad._values()
    # autograd drops the mark that says "coalesced": looking is cheaper than sorting again
    if not bool((rows[1:] > rows[:-1]).all()):
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    return rows, values


def distinct_rows(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort looked-up rows into groups.

    Returns:
        The distinct rows int64 ``[U]`` in ascending order, the order ``[N]`` that sorts the
        input, and the start ``[U]`` of each distinct row's group in that order.
    """
    keys = rows.int() if num_rows <= _INT32_ROWS else rows
    ordered, order = torch.sort(keys)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    starts = first.nonzero().view(-1)
    return ordered[starts].long(), order, starts


def sum_groups(values: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """Sum ``values[order]`` (``[N, C]``) over the groups of `distinct_rows`, giving ``[U, C]``."""
    return F.embedding_bag(order, values, starts, mode="sum")


def gradient_of_rows(gradient: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sparse gradient ``[R, C]`` of a table whose rows were read: each row once."""
    distinct, order, starts = distinct_rows(rows, shape[0])
    summed = sum_groups(gradient.contiguous(), order, starts)
    return torch.sparse_coo_tensor(
        distinct[None], summed, tuple(shape), is_coalesced=True, check_invariants=False
    )


class _RowGather(torch.autograd.Function):
    """Gather whose gradient holds the touched rows only."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return gather_rows(weight.detach(), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient_of_rows(grads[0], rows, ctx.shape), None
