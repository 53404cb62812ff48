"""`FbgemmRows`: a `RowTable` that FBGEMM's kernels look up and step.

Shape letters: R rows, C width of a row, P that width filled up to a multiple of 4, N lookups.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.fbgemm.engine import MULTIPLE, Engine
from featemb.rows import RowTable, gather_rows

if TYPE_CHECKING:
    from featemb.codecs.base import Codec
    from featemb.parts.base import Part

_THEIRS = "fbgemm_"  # buffers of FBGEMM's bookkeeping


class FbgemmRows(RowTable):
    """A trainable table of rows in memory that FBGEMM's kernels work on.

    Names, shapes and answers are those of a `RowTable`. `featemb.optim.build` makes what steps it
    (`row_optimizer`); until then, and without gradients, torch's kernels read the rows.

    Args:
        weight: the rows, float32 ``[R, C]``. Where C is a multiple of 4 their memory is taken
            over, else they are copied to rows that zeros fill up.

    Attributes:
        weight: parameter ``[R, C]``, a view of the table.
        padding: buffer ``[R, P - C]``, the zeros, where there are any; in no state dict.
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "rows", "padding": "padding"}
    _engine: weakref.ref[Engine] | None = None  # an optimizer owns it

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(1, 1, init=0.0, generator=None)
        self.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        self._place(weight.detach())

    @torch.no_grad()
    def _place(self, weight: Tensor) -> None:
        """Put rows ``[R, C]`` where FBGEMM can work on them."""
        missing = -weight.shape[1] % MULTIPLE
        whole = F.pad(weight, (0, missing)) if missing else weight.contiguous()
        self.weight.data = whole[:, : weight.shape[1]]
        # what steps the rows is made by `row_optimizer`, not from the layer's parameters
        self.weight.stepped_apart = True  # type: ignore[attr-defined]
        if missing:
            self.register_buffer("padding", whole[:, weight.shape[1] :], persistent=False)
        self._whole, self._engine = whole, None

    @property
    def engine(self) -> Engine | None:
        """What trains the rows; None where there is no optimizer."""
        return None if self._engine is None else self._engine()

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows; int64 of any shape ``[...]`` gives ``[..., C]``."""
        training = torch.is_grad_enabled() and self.weight.requires_grad
        flat, engine = rows.reshape(-1), self.engine
        if torch.compiler.is_exporting() or not training:
            vectors = gather_rows(self._whole, flat)[:, : self.weight.shape[1]]
        elif engine is None or not flat.numel():
            return super().forward(rows)
        else:
            vectors = _read(self.weight, flat, engine)
        return vectors.reshape(*rows.shape, self.weight.shape[1])

    def row_optimizer(self, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Return what steps the rows (see `featemb.optim.build`), with a state that begins anew.

        Raises:
            ConfigError: FBGEMM has no such optimizer on the rows' device.
        """
        from featemb.fbgemm.steps import FbgemmSteps

        return FbgemmSteps(self, name, lr, weight_decay)

    def train_by(self, optimizer: str) -> Engine:
        """Give the table to FBGEMM, with an optimizer of its own, and return what trains it."""
        engine = Engine(self._whole, self.weight.shape[1], optimizer)
        self._buffers = self._own_buffers()
        for name, tensor in engine.bookkeeping().items():
            self.register_buffer(_THEIRS + name, tensor, persistent=False)
        self._engine = weakref.ref(engine)
        return engine

    def _own_buffers(self) -> dict[str, Tensor | None]:
        return {n: one for n, one in self._buffers.items() if not n.startswith(_THEIRS)}

    def frozen(self, codec: Codec) -> Part:
        """Return the stored form of the rows."""
        return codec.encode(self.weight.detach().contiguous())

    def plain(self) -> RowTable:
        """Return a `RowTable` of the rows; where they are not filled up, of the same memory."""
        weight = self.weight.detach().contiguous()
        table = RowTable.of(nn.Parameter(weight, requires_grad=self.weight.requires_grad))
        return table.train(self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> RowTable:
        """Copy the rows alone, as an optimizer's state is not copied either."""
        taken = memo.get(id(self.weight))
        if taken is not None:  # a copy without memory: a plain table says all that there is
            return RowTable.of(taken).train(self.training)
        copied = FbgemmRows(nn.Parameter(self.weight.detach().clone(), self.weight.requires_grad))
        memo[id(self)], memo[id(self.weight)] = copied, copied.weight
        return copied.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        state = copy.copy(self.__dict__)
        return state | {"_engine": None, "_buffers": self._own_buffers()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._place(self.weight.detach())  # views of one memory are written one by one

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FbgemmRows:
        moved = fn(self.weight.detach()[:0])
        if moved.dtype != self.weight.dtype:
            raise ConfigError(
                f"the kernel 'fbgemm' trains rows in {self.weight.dtype}, not {moved.dtype}"
            )
        if moved.device != self.weight.device:
            if self.engine is not None:
                raise ConfigError(
                    f"rows that FBGEMM trains on {self.weight.device} cannot be moved to "
                    f"{moved.device}: move the model before its optimizers are made"
                )
            self._place(fn(self.weight.detach()))
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        # rows are copied, also where tensors are to be taken over: FBGEMM works on this memory
        how = {**local_metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, how, *args)


# Compilers know no sparse gradient, see `featemb.rows`.
@torch._disable_dynamo  # type: ignore[attr-defined]
def _read(weight: Tensor, rows: Tensor, engine: Engine) -> Tensor:
    vectors: Tensor = _Read.apply(weight, rows, engine)  # type: ignore[no-untyped-call]
    return vectors


class _Read(torch.autograd.Function):
    """Lookup whose gradient holds the looked-up rows as they came; `Engine.step` sums them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, engine: Engine) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return engine.read(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        sparse = torch.sparse_coo_tensor(rows[None], grads[0], ctx.shape, check_invariants=False)
        return sparse, None, None
