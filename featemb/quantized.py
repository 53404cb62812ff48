"""`QuantizedTable`: rows trained in a low-precision format, without an fp32 copy.

Shape letters: R rows, C width of a row, N looked-up rows, U distinct rows among them.

An optimizer's parameter has to be a floating-point tensor; the rows here are integers or packed
floats. So a table has a *handle*: a sparse parameter of the table's shape that never holds an
entry. It takes the row gradients (autograd sums, clears and scales them as any others), and the
optimizers of `featemb.optim` keep their state under it. They read the rows that a step touches as
fp32, update them, and write them back, rounded.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from featemb.codecs.floats import FloatRows
from featemb.errors import ConfigError, DataError, RunError
from featemb.hashing import mix64_int
from featemb.parts.base import Part
from featemb.parts.stepped import SteppedRows, signed
from featemb.rounding import round_randomly, to_bfloat16, to_float16, uniforms
from featemb.rows import gather_rows, gradient_of_rows, write_rows

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
INTEGERS = {"int8": 8, "int16": 16}
_CHUNK = 1 << 18
_TABLES = WeakTensorKeyDictionary()


class RowHandle(nn.Parameter):
    """An empty sparse parameter ``[R, C]`` that stands for a table which is no parameter."""

    def __deepcopy__(self, memo: dict[int, Any]) -> RowHandle:
        copied = RowHandle(self.data.clone(), self.requires_grad)
        memo[id(self)] = copied
        return copied


def _handle(shape: tuple[int, int], like: Tensor) -> RowHandle:
    """Make a handle of a table's shape, with dtype and device of ``like``."""
    index = torch.empty(1, 0, dtype=torch.int64, device=like.device)
    values = torch.empty(0, shape[1], dtype=like.dtype, device=like.device)
    return RowHandle(torch.sparse_coo_tensor(index, values, shape, check_invariants=False))


class QuantizedTable(nn.Module):
    """A trainable table whose rows exist in a low-precision format only.

    Args:
        weight: fp32 ``[R, C]``, the initial rows; they are rounded at random.
        rows: "int8", "int16", "fp16" or "bf16".
        step: fp32 ``[1, 1]`` or ``[R, 1]``, the distance of two integers; ``[0]`` for floats.
        seed: of the random rounding.

    Attributes:
        codes: uint8 ``[R, C]``, the number plus 128; or int16 ``[R, C]``: the number, or the bits
            of a float.
        step: as given.
        draws: int64 ``[2]``: key and count of the random rounding.
        handle: what optimizers see (see the module's text).
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "codes": "codes",
        "handle": "codes",
        "step": "scales",
        "draws": "random state",
    }
    codes: Tensor
    step: Tensor
    draws: Tensor

    def __init__(self, weight: Tensor, rows: str, step: Tensor, seed: int) -> None:
        super().__init__()
        self.format = rows
        self.num_rows, self.width = weight.shape
        device = weight.device
        kind = torch.uint8 if rows == "int8" else torch.int16
        self.register_buffer("codes", torch.empty(weight.shape, dtype=kind, device=device))
        self.register_buffer("step", step)
        key = mix64_int(seed) >> 1
        self.register_buffer("draws", torch.tensor([key, 0], device=device))
        self.handle = _handle((self.num_rows, self.width), torch.empty(0, device=device))
        self._bind()
        if not weight.is_meta:
            self._store_all(weight)

    @torch.no_grad()
    def _store_all(self, weight: Tensor) -> None:
        for at in range(0, self.num_rows, _CHUNK):
            part = weight[at : at + _CHUNK]
            self._store(torch.arange(at, at + len(part), device=weight.device), part)
        self.draws[1] += 1

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows as fp32; int64 of any shape ``[...]`` gives ``[..., C]``.

        Raises:
            RunError: an optimizer that does not know the table has written to its handle.
        """
        flat = rows.reshape(-1)
        vectors = self.read(flat)
        if torch.is_grad_enabled() and self.handle.requires_grad:
            vectors = _attach(self, vectors, flat)
        return vectors.view(*rows.shape, self.width)

    def read(self, rows: Tensor) -> Tensor:
        """Return rows int64 ``[N]`` as fp32 ``[N, C]``, without a gradient."""
        if self.format in FLOATS:
            return gather_rows(self.codes.view(FLOATS[self.format]), rows).to(self.handle.dtype)
        codes = self.codes.index_select(0, rows)
        return self.steps(rows) * signed(codes, INTEGERS[self.format], self.width)

    @torch.no_grad()
    def write(self, rows: Tensor, weight: Tensor, grad: Tensor) -> None:
        """Take updated rows, and round them at random; what an optimizer calls.

        Numbers beyond the range of the format become its extremes.

        Args:
            rows: distinct rows int64 ``[U]``.
            weight: fp32 ``[U, C]``, their new values.
            grad: fp32 ``[U, C]``, the gradients that moved them.

        Raises:
            DataError: a number is not finite.
        """
        _check_finite(rows, weight)
        self.adapt(rows, weight, grad)
        self._store(rows, weight)
        self.draws[1] += 1

    def adapt(self, rows: Tensor, weight: Tensor, grad: Tensor) -> None:
        """Move the steps before rows are rounded; the arguments are those of `write`."""

    def _store(self, rows: Tensor, weight: Tensor) -> None:
        uniform = uniforms(self.draws, rows, self.width)
        write_rows(self.codes, rows, self._coded(rows, weight, uniform))

    def _coded(self, rows: Tensor, weight: Tensor, uniform: Tensor) -> Tensor:
        if self.format in FLOATS:
            rounding = to_float16 if self.format == "fp16" else to_bfloat16
            return rounding(weight, uniform).view(torch.int16)
        half = 2 ** (INTEGERS[self.format] - 1)
        number = round_randomly(weight / self.steps(rows), uniform).clamp(-half, half - 1)
        return (number + half).to(torch.uint8) if half == 128 else number.to(torch.int16)

    def steps(self, rows: Tensor) -> Tensor:
        """Return the steps of rows: ``[U, 1]``, or ``[1, 1]`` where all have one."""
        return self.step if self.step.shape[0] == 1 else self.step.index_select(0, rows)

    def frozen(self, codec: Codec) -> Part:
        """Return the rows as they are, whatever the codec."""
        codes = self.codes.clone()
        if self.format in FLOATS:
            return FloatRows(weight=codes.view(FLOATS[self.format]))
        return SteppedRows(
            codes=codes,
            step=self.step.clone(),
            offset=self.step.new_empty(0),
            bits=INTEGERS[self.format],
            width=self.width,
        )

    def extra_repr(self) -> str:
        """Shape and format, for printing."""
        return f"{self.num_rows} x {self.width}, {self.format}"

    def _bind(self) -> None:
        """Note whose handle it is; a copied or moved table makes a new note."""
        handle: nn.Parameter = self.handle
        if type(handle) is not RowHandle:  # some conversions leave a plain parameter
            self.handle = _handle((self.num_rows, self.width), handle.data)
            self.handle.requires_grad_(handle.requires_grad)
        _TABLES[self.handle] = weakref.ref(self)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedTable:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._bind()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._bind()

    # The handle holds nothing: it is no part of the state dict, which files take dense tensors of.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "handle"]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        full = {**state_dict, prefix + "handle": self.handle}
        super()._load_from_state_dict(full, prefix, *args)


def _check_finite(rows: Tensor, weight: Tensor) -> None:
    if torch.isfinite(weight.sum()):  # one pass; a sum of huge numbers may overflow, too
        return
    finite = torch.isfinite(weight).all(1)
    if not finite.all():
        row = int(rows[~finite][0])
        raise DataError(f"row {row} is not finite after an update: lower the learning rate")


def table_of(parameter: Tensor) -> QuantizedTable | None:
    """Return the table that a handle stands for; None for other parameters."""
    found = _TABLES.get(parameter) if parameter.layout != torch.strided else None  # type: ignore[no-untyped-call]
    table: QuantizedTable | None = None if found is None else found()
    return table


def read_rows(parameter: Tensor, rows: Tensor) -> Tensor:
    """Return rows int64 ``[U]`` of a table, or of a handle's table, as ``[U, C]``."""
    table = table_of(parameter)
    return gather_rows(parameter, rows) if table is None else table.read(rows)


def update_rows(parameter: Tensor, rows: Tensor, weight: Tensor, grad: Tensor) -> None:
    """Overwrite rows of a table, or of a handle's table (see `QuantizedTable.write`)."""
    table = table_of(parameter)
    if table is None:
        write_rows(parameter, rows, weight)
    else:
        table.write(rows, weight, grad)


def refuse_handles(parameters: list[Tensor], optimizer: str) -> None:
    """Refuse handles in an optimizer of dense gradients.

    Raises:
        ConfigError: there is one.
    """
    if any(table_of(parameter) is not None for parameter in parameters):
        raise ConfigError(
            f"{optimizer} cannot train low-precision rows, which have row gradients only: give it "
            "the groups of featemb.optim.build, or use RowAdagrad, RowAdam or RowSGD"
        )


@torch._disable_dynamo  # type: ignore[attr-defined]  # compilers know no sparse gradient
def _attach(table: QuantizedTable, vectors: Tensor, rows: Tensor) -> Tensor:
    if table.handle._nnz():
        raise RunError(
            "an optimizer of torch has stepped on low-precision rows, which it cannot train: use "
            "featemb.optim.build, RowAdagrad, RowAdam or RowSGD"
        )
    attached: Tensor = _RowsOfHandle.apply(table.handle, vectors, rows)  # type: ignore[no-untyped-call]
    return attached


class _RowsOfHandle(torch.autograd.Function):
    """Gives the looked-up vectors a gradient: row gradients of the handle."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, vectors: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = handle.shape
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return gradient_of_rows(grads[0], rows, ctx.shape), None, None
