"""Codecs on adversarial rows (their bytes and packing: tests/test_frozen.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import featemb as fe
from featemb.codecs import integers
from featemb.codecs.base import codec_by_name
from featemb.memory import module_bytes

ORDINARY = st.floats(-6e4, 6e4, width=32)
TINY = st.floats(-(2.0**-13), 2.0**-13, width=32)
tables = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.one_of(ORDINARY, TINY, st.just(0.0)))
)


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from(["fp32", "fp16", "bf16", "int8", "int4", "int2"]))
def test_any_row_stays_within_the_stated_error(array: Any, name: str) -> None:
    table, codec = torch.from_numpy(array), codec_by_name(name)
    part = codec.encode(table)
    rows = part(torch.arange(len(table)))
    assert rows.dtype == torch.float32
    assert rows.shape == table.shape
    assert ((rows.double() - table.double()).abs() <= codec.error_bound(table).double()).all()


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from([8, 4, 2]))
def test_the_error_is_half_a_level_of_the_row(array: Any, bits: int) -> None:
    """A bound from the table alone: half a level, and the fp16 rounding of bias and scale."""
    table = torch.from_numpy(array)
    part = codec_by_name(f"int{bits}").encode(table)
    per_row = part.scale.shape[0] == len(table)
    groups = table.double() if per_row else table.double().reshape(1, -1)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    levels = 2**bits - 1
    coarse = torch.maximum(low.abs(), high.abs()) * 2**-9 + 2**-23
    bound = (high - low + coarse) / levels * (0.5 + 2**-9) + coarse * 2**-9 + 2**-24
    error = (part(torch.arange(len(table))).double() - table.double()).abs()
    assert (error <= bound).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40))
def test_bytes_are_their_formula(rows: int, width: int) -> None:
    for name, each in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        part = codec_by_name(name).encode(torch.ones(rows, width))
        assert module_bytes(part) == {"rows": rows * width * each}
    for name, bits in (("int8", 8), ("int4", 4), ("int2", 2)):
        code = (width * bits + 7) // 8
        part = codec_by_name(name).encode(torch.ones(rows, width))
        scales = 4 * rows if code > 4 else 4
        assert module_bytes(part) == {"codes": rows * code, "scales": scales}


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_chunks_of_rows_change_nothing(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    whole = codec_by_name(name).encode(table)
    monkeypatch.setattr(integers, "_CHUNK_ROWS", 7)
    parts = codec_by_name(name).encode(table)
    for key, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[key], value)


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_extremes_of_a_row_are_kept(name: str) -> None:
    """Codes span the row: its least and largest number are not cut off."""
    table = torch.randn(200, 33, generator=torch.Generator().manual_seed(0))
    part = codec_by_name(name).encode(table)
    scale, bias = part.scale.float(), part.bias.float()
    assert (bias <= table.amin(1)).all()
    assert (bias + scale * (2**part.bits - 1) >= table.amax(1)).all()


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16", "int8", "int4", "int2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("width", [1, 16])
def test_rows_that_are_not_finite_are_named(name: str, value: float, width: int) -> None:
    table = torch.zeros(9, width)
    table[6, -1] = value
    with pytest.raises(fe.DataError, match="row 6"):
        codec_by_name(name).encode(table)


@pytest.mark.parametrize(("name", "value"), [("fp16", 65520.0), ("bf16", 3.4e38), ("int8", -7e4)])
def test_rows_out_of_range_are_named(name: str, value: float) -> None:
    table = torch.zeros(9, 16)
    table[4, 1] = value
    with pytest.raises(fe.DataError, match="row 4"):
        codec_by_name(name).encode(table)


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_the_largest_half_is_in_range(value: float) -> None:
    table = torch.full((3, 16), value)
    for name in ("fp16", "int8", "int4", "int2"):
        assert torch.equal(codec_by_name(name).encode(table)(torch.arange(3)), table)


def test_unknown_codecs_name_the_nearest() -> None:
    with pytest.raises(fe.ConfigError, match="did you mean 'int8'"):
        fe.check.Case("full").layer().freeze("int9")
