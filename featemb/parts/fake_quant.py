"""Fake quantisation: rows rounded in training to the levels that they will be stored at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.kernels import pack
from featemb.parts.base import Part
from featemb.parts.stepped import SteppedRows

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

_SMALLEST = 2.0**-40
_CHUNK = 1 << 16


class _Round(torch.autograd.Function):
    """Rounding to the nearest integer whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def round_through(x: Tensor) -> Tensor:
    """Round to integers; the gradient passes straight through."""
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def positive(step: Tensor) -> Tensor:
    """Return the step sizes that are used: the parameter's absolute values, never zero."""
    return step.abs().clamp(min=_SMALLEST)


def scale_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """Return x itself, with a gradient that is multiplied by a factor."""
    scaled = x * factor
    return x.detach() + scaled - scaled.detach()


def levels(x: Tensor, low: Tensor | float, high: Tensor | float, training: bool) -> Tensor:
    """Return integers ``low ... high`` nearest to x.

    In training the gradient passes through within the limits and is zero outside of them (Bengio
    et al., 2013); otherwise it is zero, as that of the true function.
    """
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(one, device=x.device) for one in (low, high))
        clamped = x.clamp(low, high)
    else:
        clamped = x.clamp(low, high)
    return round_through(clamped) if training else clamped.round()


class FakeQuantRows(Part):
    """A table whose rows are read as ``step * code + offset``, codes of b bits.

    ``code = clamp(round((w - offset) / step), -2^(b-1), 2^(b-1) - 1)``. In training the gradients
    are LSQ's: a row gets its gradient straight through where it is not clipped; the step gets
    ``(code - v) g`` of numbers that are not clipped, v their value before rounding, and ``code g``
    of those that are, all times ``1 / sqrt(numel (2^(b-1) - 1))``; the offset the g of clipped
    ones. In eval mode the rounding gives no gradient.

    Attributes:
        rows: the table ``[R, C]``.
        step: parameter ``[1, 1]``.
        offset: parameter ``[C]``, or a tensor ``[0]`` for none.
        bits: b: 8, 4 or 2.
    """

    memory_parts: ClassVar[dict[str, str]] = {"step": "scales", "offset": "scales"}
    rows: nn.Module
    step: Tensor
    offset: Tensor
    bits: int

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        weight: Tensor = self.rows(rows)
        step = positive(self.step)
        if self.training:
            factor = (max(1, weight.numel()) * max(1, 2 ** (self.bits - 1) - 1)) ** -0.5
            step = scale_gradient(step, factor)
        else:
            step = step.detach()
        codes = self._codes(weight, step)
        vectors = step * codes
        return vectors + self.offset if self.offset.shape[0] else vectors

    def frozen(self, codec: Codec) -> Part:
        """Return the codes, packed, whatever the codec."""
        weight = self.rows.get_parameter("weight").detach()
        check_finite(weight)
        step = positive(self.step.detach())
        half, per_byte = 2 ** (self.bits - 1), 8 // self.bits
        shape = (weight.shape[0], -(-weight.shape[1] // per_byte))
        codes = torch.empty(shape, dtype=torch.uint8, device=weight.device)
        for at in range(0, 0 if weight.is_meta else len(weight), _CHUNK):
            found = self._codes(weight[at : at + _CHUNK], step) + half
            codes[at : at + _CHUNK] = pack(found, self.bits)
        return SteppedRows(
            codes=codes,
            step=step.clone(),
            offset=self.offset.detach().clone(),
            bits=self.bits,
            width=weight.shape[1],
        )

    def _codes(self, weight: Tensor, step: Tensor) -> Tensor:
        if self.offset.shape[0]:
            weight = weight - self.offset
        half = 2 ** (self.bits - 1)
        return levels(weight / step, -half, half - 1, self.training)
