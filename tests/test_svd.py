"""The low-rank codec against the singular values, and its bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb.codecs.base import codec_by_name
from featemb.codecs.floats import FloatRows
from featemb.codecs.svd import SVD, LowRankRows, check_reach
from featemb.memory import module_bytes


def correlated(rows: int = 400, width: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * 0.7 ** torch.arange(width)[:, None]
    return torch.randn(rows, width, generator=generator) @ mixing + 0.3


@pytest.mark.parametrize("rank", [1, 3, 6, 11])
def test_the_error_is_the_tail_of_the_singular_values(rank: int) -> None:
    """Eckart and Young: no matrix of this rank is nearer."""
    table = correlated()
    part = SVD(rank=rank).encode(table)
    assert isinstance(part, LowRankRows)
    error = (part(torch.arange(400)).double() - table.double()).square().sum()
    tail = torch.linalg.svdvals(table.double())[rank:].square().sum()
    assert float(error) == pytest.approx(float(tail), rel=1e-5)


def test_weights_favour_the_rows_that_are_read() -> None:
    table = correlated()
    table[:20] = table[:20].flip(1) * 2
    weights = torch.ones(400, dtype=torch.float64)
    weights[:20] = 1000
    plain, weighed = (SVD(rank=3).weighed(table, one) for one in (None, weights))

    def error(part: LowRankRows) -> float:
        squares = (part(torch.arange(400)) - table).square().sum(1)
        return float((squares * weights).sum())

    assert error(weighed) < 0.8 * error(plain)


def test_the_weighted_error_is_the_least_of_its_rank() -> None:
    table = correlated()
    weights = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    part = SVD(rank=4).weighed(table, weights)
    squares = (part(torch.arange(400)).double() - table.double()).square().sum(1)
    tail = torch.linalg.svdvals(table.double() * weights.sqrt()[:, None])[4:].square().sum()
    assert float((squares * weights).sum()) == pytest.approx(float(tail), rel=1e-5)


@pytest.mark.parametrize(("rows", "each"), [("fp32", 4 * 5), ("fp16", 2 * 5), ("int8", None)])
def test_bytes_are_narrow_rows_and_the_basis(rows: str, each: int | None) -> None:
    table = correlated()
    part = SVD(rank=5, inner=rows).encode(table)
    narrow = codec_by_name(rows).encode(torch.zeros(400, 5))
    stored = sum(module_bytes(narrow).values())
    assert each is None or stored == 400 * each
    assert sum(module_bytes(part).values()) == stored + 4 * 5 * 12
    plan = SVD(rank=5, inner=rows).encode(table.to("meta"))
    assert module_bytes(plan) == module_bytes(part)


@pytest.mark.parametrize("shape", [(3, 12), (400, 1), (1, 1), (4, 4)])
def test_small_tables_are_stored_plainly(shape: tuple[int, int]) -> None:
    table = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    part = SVD().encode(table)
    assert torch.equal(part(torch.arange(shape[0])), table)
    assert sum(module_bytes(part).values()) == 4 * table.numel()


def test_rank_beyond_the_width_is_plain() -> None:
    table = correlated()
    assert torch.equal(SVD(rank=99).encode(table)(torch.arange(400)), table)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_out_of_range_do_no_harm(scale: float) -> None:
    table = correlated() * scale
    part = SVD(rank=11).encode(table)
    assert ((part(torch.arange(400)) - table).abs() <= 0.3 * table.abs().max()).all()


def test_settings_are_read_and_refused() -> None:
    assert codec_by_name("svd(rank=3, inner=int8)") == SVD(rank=3, inner="int8")
    assert str(fe.parse('full+svd(inner="pq(parts=2)")')) == 'full+svd(inner="pq(parts=2)")'
    for text in ("svd(rank=0)", "svd(inner=int9)", "svd(inner=svd)"):
        with pytest.raises(fe.ConfigError):
            codec_by_name(text)


def test_rows_that_are_not_finite_are_named() -> None:
    table = correlated()
    table[7, 3] = float("nan")
    with pytest.raises(fe.DataError, match="row 7"):
        SVD().encode(table)


def test_a_whole_layer_is_served_and_exported() -> None:
    layer = fe.embedding(fe.check.case.SINGLE, "full+svd(rank=3, inner=int8)", dim=8)
    frozen = layer.freeze()
    ids = fe.check.case.single_ids(16)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(frozen, (ids,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(ids[:5]), frozen(ids[:5]), atol=1e-6)
    assert frozen.memory().serving == layer.memory().serving


def test_rows_that_no_one_reads_take_the_axes_left() -> None:
    """Where the rows that are read have a lower rank than r, what is left serves the others."""
    table = correlated()
    table[:5, 2:] = 0.0
    weights = torch.zeros(400, dtype=torch.float64)
    weights[:5] = 7.0
    part = SVD(rank=6).weighed(table, weights)
    rows = part(torch.arange(400)).double()
    assert torch.allclose(rows[:5], table[:5].double(), atol=1e-6)
    rest = table[5:].double()
    rest[:, :2] = 0.0
    tail = torch.linalg.svdvals(rest)[4:].square().sum()
    assert float((rows[5:] - table[5:]).square().sum()) == pytest.approx(float(tail), rel=1e-4)


@pytest.mark.parametrize("inner", ["fp32", "fp16", "bf16", "int8"])
def test_narrow_rows_fit_where_plain_ones_do(inner: str) -> None:
    """All of 65504 would be 4 times as long on the first axis."""
    table = torch.full((300, 16), 65504.0)
    rows = SVD(rank=2, inner=inner).encode(table)(torch.arange(300))
    assert torch.allclose(rows, table, rtol=0.005)


def test_the_end_of_fp32_is_met_or_refused_by_row() -> None:
    table = correlated() * 1e30
    table[9] = 1e38
    assert torch.allclose(SVD(rank=6).encode(table)(torch.tensor(9)), table[9], rtol=1e-3)
    part = LowRankRows(
        rows=FloatRows(weight=torch.tensor([[1.0], [2e38]])), basis=torch.tensor([[2.0, 0.0]])
    )
    with pytest.raises(fe.DataError, match="row 1 exceeds the range of svd"):
        check_reach(part, torch.full((2, 2), 3e38), "svd")
