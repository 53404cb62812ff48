"""Binary codes against closed forms, brute force and their untrained start."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb.codecs.base import codec_by_name
from featemb.codecs.binary import Binary, RecurrentRows, SignRows
from featemb.codecs.recurrent import Recurrence, encode_rows, fit_recurrence
from featemb.memory import module_bytes
from featemb.signs import all_levels


def table_of(rows: int = 500, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(rows, 1, generator=generator) + 0.1
    return torch.randn(rows, width, generator=generator) * scale


def error(codec: Binary, table: Tensor) -> float:
    rows = codec.encode(table)(torch.arange(len(table)))
    return float((rows - table).square().mean() / table.square().mean())


def test_one_bit_is_the_closed_form() -> None:
    """a = mean |r| and s = sign r are the best of one stage."""
    table = table_of()
    part = Binary(bits=1, scales="row").encode(table)
    left = table.double() - table.double().mean(0)
    wanted = left.abs().mean(1, keepdim=True) * left.sign() + table.double().mean(0)
    assert torch.allclose(part(torch.arange(500)).double(), wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3])
def test_turns_are_no_worse_than_the_greedy_start(bits: int) -> None:
    table = table_of()
    left = table - table.double().mean(0).float()
    start = torch.zeros_like(left)
    for _ in range(bits):
        rest = left - start
        start += rest.abs().mean(1, keepdim=True) * rest.sign()
    greedy = (left - start).square().sum(1)
    rows = Binary(bits=bits, scales="row").encode(table)(torch.arange(500))
    refined = (rows - table).square().sum(1)
    assert (refined <= greedy * 1.01 + 1e-6).all()
    assert refined.sum() < 0.9 * greedy.sum()


def test_codes_are_the_nearest_levels() -> None:
    """Brute force over all signs of each number."""
    table = table_of(60, 5)
    part = Binary(bits=3, scales="row").encode(table)
    assert isinstance(part, SignRows)
    scales = part.scales.float() * part.unit
    rows = part(torch.arange(60))
    for row, column in itertools.product(range(60), range(5)):
        sums = [
            sum(sign * float(a) for sign, a in zip(signs, scales[row], strict=True))
            for signs in itertools.product((-1, 1), repeat=3)
        ]
        x = float(table[row, column])
        best = min(abs(float(part.mean[column]) + one - x) for one in sums)
        assert abs(float(rows[row, column]) - x) == pytest.approx(best, abs=1e-5)


def test_levels_follow_the_bits_of_the_code() -> None:
    levels = all_levels(torch.tensor([[4.0, 2.0, 1.0]]))[0]
    assert levels.tolist() == [-7, 1, -3, 5, -5, 3, -1, 7]


def test_more_bits_come_nearer_in_both_forms() -> None:
    table = table_of()
    for form in ("greedy", "recurrent"):
        errors = [error(Binary(bits=bits, form=form), table) for bits in (1, 2, 3)]
        assert errors[0] > 1.5 * errors[1] > 2 * errors[2], (form, errors)


def test_learning_comes_nearer_than_the_random_start() -> None:
    table = table_of()
    rows = table / table.norm(dim=1, keepdim=True)
    start = Recurrence(12, 12, 2, torch.Generator().manual_seed(0xB1))
    learned = fit_recurrence(rows, torch.ones(500), 12, 2)
    with torch.no_grad():
        before, after = ((one(rows)[1] - rows).square().mean() for one in (start, learned))
    assert after < 0.5 * before


def test_levels_of_the_recurrence_are_its_codes() -> None:
    """b is the sum of the signs, halved at each stage: 2^K equally spaced levels."""
    rows = torch.nn.functional.normalize(table_of(100), dim=1)
    recurrence = Recurrence(12, 9, 3, torch.Generator().manual_seed(0))
    codes = encode_rows(recurrence, rows)
    assert codes.min() >= 0
    assert codes.max() <= 7
    levels = (2 * codes + 1).float() / 4 - 2
    assert torch.equal(levels, recurrence(rows)[0].detach())
    first = torch.where(rows @ recurrence.encoders[0].detach() < 0, -1.0, 1.0)
    assert torch.equal((codes >= 4).float() * 2 - 1, first)


def test_weights_favour_the_rows_that_are_read() -> None:
    table = table_of()
    weights = torch.ones(500, dtype=torch.float64)
    weights[:25] = 500
    for codec in (Binary(bits=1, scales="table"), Binary(bits=2, form="recurrent")):
        errors = []
        for mass in (None, weights):
            rows = codec.weighed(table, mass)(torch.arange(500))
            errors.append(float(((rows - table).square().sum(1) * weights).sum()))
        assert errors[1] < errors[0]


@pytest.mark.parametrize("width", [4, 12, 40])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_bytes_are_their_formula(bits: int, width: int) -> None:
    table = table_of(3000, width)
    words = 4 * -(-3000 * width * bits // 32)
    for scales, each in (("row", 3000), ("table", 1)):
        part = Binary(bits=bits, scales=scales).encode(table)
        wanted = {"codes": words, "scales": 2 * bits * each + 4 * width + 4}
        assert module_bytes(part) == wanted
        plan = Binary(bits=bits, scales=scales).encode(table.to("meta"))
        assert module_bytes(plan) == wanted
    shared = -(-width * bits // 8) <= 2 * bits
    part = Binary(bits=bits).encode(table)
    assert isinstance(part, SignRows)
    assert part.scales.shape[0] == (1 if shared else 3000)
    part = Binary(bits=bits, form="recurrent").encode(table.to("meta"))
    wanted = {"codes": words, "scales": 2 * 3000 + 4, "projections": 4 * width * width}
    assert module_bytes(part) == wanted


@pytest.mark.parametrize("form", ["greedy", "recurrent"])
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e20, 3e37])
def test_rows_of_any_size_and_zeros(form: str, scale: float) -> None:
    table = table_of(300, 16) * scale
    table[5] = 0.0
    codec = Binary(bits=2, form=form)
    part = codec.encode(table)
    rows = part(torch.arange(300))
    assert torch.isfinite(rows).all()
    assert ((rows - table).abs() <= codec.error_bound(table) * 1.001 + 1e-45).all()
    reach = float(table.abs().max())
    assert ((rows - table).abs() <= reach).all()
    if isinstance(part, RecurrentRows):
        assert (rows[5] == 0).all()


def test_settings_are_refused_out_of_range() -> None:
    for text in (
        "binary(bits=0)",
        "binary(bits=5)",
        "binary(bits=9, form=recurrent)",
        "binary(form=other)",
        "binary(scales=block)",
        "binary(signs=0)",
    ):
        with pytest.raises(fe.ConfigError):
            codec_by_name(text)


@pytest.mark.parametrize("text", ["binary", "binary(bits=2, form=recurrent, signs=5)"])
def test_a_whole_layer_is_served_and_exported(text: str) -> None:
    layer = fe.embedding(fe.check.case.SINGLE, f"full+{text}", dim=8)
    frozen = layer.freeze()
    ids = fe.check.case.single_ids(16)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(frozen, (ids,), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(ids[:5]), frozen(ids[:5]), atol=1e-6)
    assert frozen.memory().serving == layer.memory().serving


def test_rows_that_are_not_finite_are_named() -> None:
    table = table_of()
    table[7, 3] = float("inf")
    for form in ("greedy", "recurrent"):
        with pytest.raises(fe.DataError, match="row 7"):
            Binary(form=form).encode(table)
