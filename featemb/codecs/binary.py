"""`binary`: rows as sums of scaled signs, greedy or by a learned recurrence.

Shape letters: R rows, C numbers a row, K bits a number, M signs a row and stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.codecs.base import check_finite
from featemb.codecs.floats import FloatRows
from featemb.codecs.pq import blocks, in_range, read_codes
from featemb.codecs.recurrent import encode_rows, fit_recurrence
from featemb.codecs.weighted import CountingCodec, largest_errors
from featemb.config import register
from featemb.parts.base import Part
from featemb.parts.packed import PackedCodes
from featemb.signs import all_levels, nearest_signs, row_scales, table_scales, weighted_mean

_SCALE_BYTES = 2


class SignRows(Part):
    """Rows ``mean + sum_k a_k s_k``; ``[...]`` rows give fp32 ``[..., C]``.

    Attributes:
        codes: packed integers of K bits a number: bit k is 1 where s_k is +1.
        scales: fp16 ``[R, K]``, or ``[1, K]`` for all rows.
        mean: fp32 ``[C]``.
        unit: fp32 scalar that scales are multiplied by.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "scales": "scales",
        "mean": "scales",
        "unit": "scales",
    }
    codes: nn.Module
    scales: Tensor
    mean: Tensor
    unit: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        """Gather codes and add up their scales."""
        flat, width = rows.reshape(-1), self.mean.shape[0]
        scales = self.scales if self.scales.shape[0] == 1 else self.scales.index_select(0, flat)
        levels = all_levels(scales.float() * self.unit).expand(flat.shape[0], -1)
        vectors = levels.gather(1, read_codes(self.codes, flat, width)) + self.mean
        return vectors.view(*rows.shape, width)


class RecurrentRows(Part):
    """Rows ``norm * (b D)``, b of M equally spaced levels a number; fp32 ``[..., C]``.

    Attributes:
        codes: packed integers of K bits, M a row: ``b = (2 code + 1) / 2^(K-1) - 2``.
        norms: fp16 ``[R]``.
        decoder: fp32 D ``[M, C]``.
        unit: fp32 scalar that norms are multiplied by.
        bits: K.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        "norms": "scales",
        "unit": "scales",
        "decoder": "projections",
    }
    codes: nn.Module
    norms: Tensor
    decoder: Tensor
    unit: Tensor
    bits: int

    def forward(self, rows: Tensor) -> Tensor:
        """Gather codes and decode them."""
        flat = rows.reshape(-1)
        codes = read_codes(self.codes, flat, self.decoder.shape[0])
        levels = (2 * codes + 1).float() / 2 ** (self.bits - 1) - 2
        norms = self.norms.index_select(0, flat).float() * self.unit
        vectors: Tensor = (levels @ self.decoder) * norms[:, None]
        return vectors.view(*rows.shape, self.decoder.shape[1])


@register
@dataclass(frozen=True, kw_only=True)
class Binary(CountingCodec):
    """Signs with scales: K bits a number, decoded by adding up.

    ``form=greedy``: ``x ~ mean + sum_k a_k s_k``, with scales a_k a row (or a table) and signs s_k
    a number. Each stage takes the signs of what is left and its mean magnitude; then nearest signs
    for the scales, and least squares scales for the signs, in turns (multi-bit binary quantisation,
    Xu et al., ICLR 2018).

    ``form=recurrent``: the recurrence of BEBR (Gan et al., KDD 2023, 2302.08714), to reconstruct.
    With f the row divided by its norm, ``b_0 = sign(W f)``, and
    ``b_{i+1} = b_i + 2^-(i+1) sign(R_i (f - D_i b_i))``, K - 1 times; W, R_i and D_i are learned on
    a sample of the rows, and the decoder is fitted to the codes of all of them in the end.
    Deviations from BEBR: rows are reconstructed, not ranked, so the norm of each is stored; W, R
    and D are matrices, not networks; a sign of zero is +1.

    Where this takes no fewer bytes than fp32 rows, as in small tables, those are stored; the shape
    alone decides.

    Bytes: greedy ``R C K / 8 + 2 K R + 4 C + 4`` (``2 K`` instead of ``2 K R`` with scales of the
    table); recurrent ``R M K / 8 + 2 R + 4 M C + 4``.

    Attributes:
        bits: K, 1 to 8 (greedy: to 4).
        form: "greedy" or "recurrent".
        scales: "row", "table", or "auto": the table where a row's codes take no more than its
            scales; for the greedy form.
        signs: M of the recurrent form; None takes C.
    """

    name: ClassVar[str] = "binary"

    bits: int = 2
    form: str = "greedy"
    scales: str = "auto"
    signs: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("form", "'greedy' or 'recurrent'", self.form in ("greedy", "recurrent"))
        most = 4 if self.form == "greedy" else 8
        self.require("bits", f"1 to {most} with form={self.form}", 1 <= self.bits <= most)
        self.require("scales", "'auto', 'row' or 'table'", self.scales in ("auto", "row", "table"))
        self.require("signs", "at least 1", self.signs is None or self.signs >= 1)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        """Find signs and scales of every row."""
        check_finite(table)
        table = table.detach()
        empty = self._empty(table)
        if sum(one.numel() * one.element_size() for one in empty.buffers()) >= 4 * table.numel():
            return FloatRows(weight=table.clone())
        if table.is_meta:
            return empty
        if isinstance(empty, SignRows):
            return _greedy(table, weights, self.bits, empty)
        assert isinstance(empty, RecurrentRows)
        return _recurrent(table, weights, self.bits, empty)

    def error_bound(self, table: Tensor) -> Tensor:
        """The largest error of each row as it is encoded without counts, ``[R, 1]``.

        It depends on the whole table; no bound follows from a row alone.
        """
        return largest_errors(self.encode(table), table)

    def _empty(self, table: Tensor) -> Part:
        """Return the stored form with nothing in it."""
        rows, width = table.shape
        unit = table.new_ones(())
        if self.form == "recurrent":
            signs = width if self.signs is None else self.signs
            return RecurrentRows(
                codes=PackedCodes.empty([rows * signs], [self.bits], table.device),
                norms=table.new_zeros(rows, dtype=torch.float16),
                decoder=table.new_zeros(signs, width),
                unit=unit,
                bits=self.bits,
            )
        shared = self.scales == "table"
        if self.scales == "auto":
            shared = -(-width * self.bits // 8) <= _SCALE_BYTES * self.bits
        return SignRows(
            codes=PackedCodes.empty([rows * width], [self.bits], table.device),
            scales=table.new_zeros(1 if shared else rows, self.bits, dtype=torch.float16),
            mean=table.new_zeros(width),
            unit=unit,
        )


def _greedy(table: Tensor, weights: Tensor | None, bits: int, empty: SignRows) -> SignRows:
    scaled, factor = in_range(table)
    mean = weighted_mean(scaled, weights)
    unit = float((scaled - mean).abs().max()) or 1.0
    shared = empty.scales.shape[0] == 1
    parts = []
    if shared:
        scales = table_scales((scaled - mean) / unit, weights, bits)
    for first, some in blocks(scaled):
        rows = (some - mean) / unit
        own = scales.expand(len(rows), -1) if shared else row_scales(rows, bits)
        codes = nearest_signs(rows, own.half().float())
        empty.codes.write(codes.flatten(), 0, first * table.shape[1])  # type: ignore[operator]
        parts.append(own.half())
    return SignRows(
        codes=empty.codes,
        scales=scales.half() if shared else torch.cat(parts),
        mean=mean * factor,
        unit=empty.unit * unit * factor,
    )


def _recurrent(
    table: Tensor, weights: Tensor | None, bits: int, empty: RecurrentRows
) -> RecurrentRows:
    scaled, factor = in_range(table)
    norms = scaled.double().norm(dim=1)
    unit = float(norms.max()) or 1.0
    stored = (norms / unit).half()
    directions = (scaled.double() / norms.clamp(min=1e-300)[:, None]).float()
    # the error of a row grows with its norm
    mass = norms.square() if weights is None else norms.square() * weights.to(norms)
    signs = empty.decoder.shape[0]
    recurrence = fit_recurrence(directions, mass, signs, bits)
    moments = torch.zeros(signs, signs, dtype=torch.float64, device=table.device)
    sides = torch.zeros(signs, table.shape[1], dtype=torch.float64, device=table.device)
    for first, some in blocks(directions):
        codes = encode_rows(recurrence, some)
        empty.codes.write(codes.flatten(), 0, first * signs)  # type: ignore[operator]
        levels = (2 * codes + 1).double() / 2 ** (bits - 1) - 2
        own = levels * mass[first : first + len(some), None]
        moments += own.T @ levels
        sides += own.T @ some.double()
    ridge = torch.eye(signs, dtype=torch.float64, device=table.device)
    ridge = ridge * moments.diagonal().mean().clamp(min=1e-30) * 1e-9
    decoder = torch.linalg.solve(moments + ridge, sides).float()
    return RecurrentRows(
        codes=empty.codes,
        norms=stored,
        decoder=decoder,
        unit=empty.unit * unit * factor,
        bits=bits,
    )
