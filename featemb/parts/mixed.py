"""Rows of which groups have bit widths of their own.

Shape letters: R rows, C numbers a row, G groups, B the largest bit width, N looked-up rows.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.parts.base import Part
from featemb.parts.fake_quant import levels, positive, scale_gradient
from featemb.parts.packed import PackedCodes

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

_CHUNK = 1 << 15
_HALF = (1, *(2**bit for bit in range(16)))  # 2^(b-1); ONNX knows no shift by a tensor


class MixedRows(Part):
    """A table in groups of ``size`` rows; each group is read at a bit width of its own.

    ``Q_b(w) = alpha_b clamp(round((w - beta) / alpha_b), -2^(b-1), 2^(b-1) - 1) + beta`` and
    ``Q_0 = 0``. While the widths are searched, training mode reads
    ``sum_b softmax(gamma_g / tau)_b Q_b(w)``.

    Attributes:
        rows: the table ``[R, C]``.
        scales: parameter ``[B]``: alpha_b is its absolute value times ``first[b]``.
        offset: parameter beta ``[C]``.
        logits: parameter gamma ``[G, B + 1]``.
        bits: int64 ``[G]``, the width of each group.
        size: rows a group; the last one may have fewer.
        first: initial steps alpha_1 ... alpha_B.
        temperature: tau.
        searching: whether training mode mixes the widths; set by the layer.
        known_bits: ``bits``, also where tensors hold no values; set by the layer.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "scales": "scales",
        "offset": "scales",
        "logits": "gates",
        "bits": "bit widths",
    }
    rows: nn.Module
    scales: Tensor
    offset: Tensor
    logits: Tensor
    bits: Tensor
    size: int
    first: tuple[float, ...]
    temperature: float
    searching: ClassVar[bool] = True
    known_bits: ClassVar[tuple[int, ...]] = ()

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        weight: Tensor = self.rows(rows)
        group = rows // self.size
        steps = self.steps()
        if self.training:
            bits = torch.arange(1, len(self.first) + 1, device=steps.device)
            steps = scale_gradient(steps, (max(1, weight.numel()) * 2.0 ** (bits - 1)) ** -0.5)
        else:
            steps = steps.detach()
        if self.training and self.searching:
            return self._mixture(weight, group, steps)
        return self._read(weight, self.bits[group], steps)

    def steps(self) -> Tensor:
        """Return alpha_1 ... alpha_B."""
        first = torch.tensor(self.first, device=self.scales.device, dtype=self.scales.dtype)
        return positive(self.scales) * first

    def probabilities(self) -> Tensor:
        """Return the probability of each width in each group, ``[G, B + 1]``."""
        return (self.logits / self.temperature).softmax(1)

    def _mixture(self, weight: Tensor, group: Tensor, steps: Tensor) -> Tensor:
        share = self.probabilities()[group]
        centered = weight - self.offset
        total = torch.zeros_like(weight)
        for number, step in enumerate(steps.unbind()):
            half = 2**number
            codes = levels(centered / step, -half, half - 1, training=True)
            total = total + share[..., number + 1, None] * (step * codes + self.offset)
        return total

    def _read(self, weight: Tensor, bits: Tensor, steps: Tensor) -> Tensor:
        """Return rows at the given widths, int64 of all axes but the last."""
        step = steps[(bits - 1).clamp(min=0)][..., None]
        codes = self._codes(weight, bits, step)
        return torch.where(
            bits[..., None] > 0, step * codes + self.offset, torch.zeros_like(weight)
        )

    def _codes(self, weight: Tensor, bits: Tensor, step: Tensor) -> Tensor:
        half = torch.tensor(_HALF, device=bits.device, dtype=weight.dtype)[bits][..., None]
        return levels((weight - self.offset) / step, -half, half - 1, self.training)

    def frozen(self, codec: Codec) -> Part:
        """Return the packed codes of all groups, whatever the codec."""
        weight = self.rows.get_parameter("weight").detach()
        check_finite(weight)
        width, widths = weight.shape[1], self.known_bits
        counts = [len(one) * width for one in torch.split(weight, self.size)]
        packed = PackedCodes.empty(counts, widths, weight.device)
        steps = self.steps().detach()
        for group, rows in enumerate(() if weight.is_meta else torch.split(weight, self.size)):
            if not widths[group]:
                continue
            bits = torch.tensor(widths[group], device=weight.device)
            half = 1 << (widths[group] - 1)
            for at in range(0, len(rows), _CHUNK):
                codes = self._codes(rows[at : at + _CHUNK], bits, steps[bits - 1])
                packed.write((codes.long() + half).reshape(-1), group, at * width)
        return MixedCodes(
            codes=packed,
            steps=steps.clone(),
            offset=self.offset.detach().clone(),
            size=self.size,
            bits=widths,
        )


class MixedCodes(Part):
    """`MixedRows` as they are served: packed codes, a step a bit width, an offset a column.

    Attributes:
        codes: packed integers of each group, row by row.
        steps: fp32 ``[B]``.
        offset: fp32 ``[C]``.
        size: rows a group.
        bits: width of each group, 0 to B.
    """

    memory_parts: ClassVar[dict[str, str]] = {"steps": "scales", "offset": "scales"}
    codes: nn.Module
    steps: Tensor
    offset: Tensor
    size: int
    bits: tuple[int, ...]

    def forward(self, rows: Tensor) -> Tensor:
        """Return vectors ``[..., C]``."""
        width = self.offset.shape[0]
        group = rows // self.size
        bits = torch.tensor(self.bits, device=rows.device)[group]
        column = torch.arange(width, device=rows.device)
        number = ((rows - group * self.size) * width)[..., None] + column
        half = torch.tensor(_HALF, device=rows.device)[bits]
        codes = self.codes(number, group[..., None]) - half[..., None]
        step = self.steps[(bits - 1).clamp(min=0)][..., None]
        vectors = step * codes.to(step.dtype) + self.offset
        return torch.where(bits[..., None] > 0, vectors, torch.zeros_like(vectors))


def group_bytes(sizes: list[int], width: int, bits: list[int]) -> int:
    """Return the bytes of the codes of groups of so many rows at these widths."""
    return sum(4 * -(-n * width * one // 32) for n, one in zip(sizes, bits, strict=True))


def group_sizes(rows: int, size: int) -> list[int]:
    """Return the rows of each group."""
    ends = [min(end, rows) for end in accumulate([size] * -(-rows // size))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
