"""Codecs on adversarial rows (their bytes and packing: tests/test_frozen.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import featemb as fe
from featemb.codecs import floats, integers
from featemb.codecs.base import Codec, codec_by_name
from featemb.codecs.integers import BlockIntRows, IntRows
from featemb.kernels import code_bytes
from featemb.memory import module_bytes

ORDINARY = st.floats(-6e4, 6e4, width=32)
TINY = st.floats(-(2.0**-13), 2.0**-13, width=32)
tables = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.one_of(ORDINARY, TINY, st.just(0.0)))
)


BITS = {"int8": 8, "int4": 4, "int2": 2}
SHARED = ("row", "block", "table")
INTEGERS = [f"{name}(scales={one}, block=3)" for name in BITS for one in SHARED]
FORMULAS = ["fp32", "fp16", "bf16", "fp8", "fp8(form=e5m2)", *BITS, *INTEGERS]


def noise(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def adversarial(rows: int = 300, width: int = 16) -> dict[str, torch.Tensor]:
    """Tables that break careless formats; enough rows that codebooks are made."""
    found = {
        "ordinary": noise(rows, width),
        "constant": torch.full((rows, width), 0.37),
        "constant rows": noise(rows, 1).expand(rows, width).clone(),
        "constant columns": noise(1, width).expand(rows, width).clone(),
        "zeros": torch.zeros(rows, width),
        "negative zeros": torch.full((rows, width), -0.0),
        "tiny": noise(rows, width) * 1e-7,
        "denormals": noise(rows, width) * 1e-41,
        "the least number": torch.full((rows, width), 2.0**-149),
        "far from zero": noise(rows, width) * 1e-3 + 1000,
        "negative": -noise(rows, width).abs() - 5,
        "of all sizes": noise(rows, width) * torch.logspace(-9, 3, rows)[:, None],
        "the largest halves": (noise(rows, width) > 0).float() * 131008 - 65504,
    }
    outlier = noise(rows, width) * 0.01
    outlier[rows // 2, width // 2] = 6e4
    return found | {"one outlier": outlier}


def encoded(codec: Codec, table: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = codec.encode(table)(torch.arange(len(table)))
    return rows


@pytest.mark.parametrize("name", sorted({*fe.codecs(), *FORMULAS}))
@pytest.mark.parametrize("width", [16, 5, 1])
def test_adversarial_rows_stay_within_the_stated_error(name: str, width: int) -> None:
    codec = codec_by_name(name)
    for what, table in adversarial(width=width).items():
        rows, bound = encoded(codec, table), codec.error_bound(table)
        assert rows.dtype == torch.float32
        assert torch.isfinite(rows).all(), what
        assert bound.expand_as(table).shape == table.shape, what
        error = (rows.double() - table.double()).abs()
        assert (error <= bound.double() * (1 + 2**-22)).all(), what  # a bound may be rounded itself


@pytest.mark.parametrize("name", fe.codecs())
def test_tables_of_one_value_and_one_row_are_kept(name: str) -> None:
    codec = codec_by_name(name)
    for table in (torch.zeros(40, 8), torch.full((1, 1), -0.25), torch.full((40, 8), 2.0)):
        assert torch.allclose(encoded(codec, table), table, rtol=1e-6, atol=0.0)


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from(FORMULAS))
def test_any_row_stays_within_the_stated_error(array: Any, name: str) -> None:
    table, codec = torch.from_numpy(array), codec_by_name(name)
    part = codec.encode(table)
    rows = part(torch.arange(len(table)))
    assert rows.dtype == torch.float32
    assert rows.shape == table.shape
    assert ((rows.double() - table.double()).abs() <= codec.error_bound(table).double()).all()


def pairs(part: IntRows | BlockIntRows) -> torch.Tensor:
    """Scale and bias of every row, fp64 ``[R, 2]``, read from the bytes with numpy."""
    if isinstance(part, BlockIntRows):
        rows = torch.arange(part.codes.shape[0]) // part.block
        return part.scales[rows].double()
    ends = part.rows[:, code_bytes(part.width, part.bits) :].contiguous().numpy()
    return torch.from_numpy(ends.view(np.float32 if part.bits == 8 else np.float16)).double()


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from(INTEGERS))
def test_the_error_is_half_a_level_of_what_shares_the_scale(array: Any, name: str) -> None:
    """A bound from the table alone: half a level, and the rounding of bias and scale."""
    table, codec = torch.from_numpy(array), codec_by_name(name)
    assert isinstance(codec, integers._Integers)
    shared = {"row": 1, "block": 3, "table": len(table)}[codec.scales]
    coarse = 2.0**-9 if codec.bits < 8 else 2.0**-15
    step = 2.0**-23 if codec.bits < 8 else 2.0**-140
    error = (encoded(codec, table).double() - table.double()).abs()
    for start in range(0, len(table), shared):
        rows = table[start : start + shared].double()
        reach = float(rows.abs().max()) * coarse + step
        level = (float(rows.max() - rows.min()) + reach) / (2**codec.bits - 1)
        allowed = (
            level * (0.5 + coarse) + reach * coarse + step / 2 + float(rows.abs().max()) / 2**22
        )
        assert float(error[start : start + shared].max()) <= allowed


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("width", [1, 5, 33])
def test_the_arithmetic_is_the_formula(name: str, width: int) -> None:
    """Scale times code plus bias, from the stored bytes, in numpy's fp64."""
    table = noise(20, width, seed=width)
    part = codec_by_name(name).encode(table)
    assert isinstance(part, IntRows | BlockIntRows)
    stored = part.codes if isinstance(part, BlockIntRows) else part.rows
    bits = np.unpackbits(stored.numpy(), axis=1, bitorder="little")[:, : width * part.bits]
    codes = bits.reshape(20, width, part.bits) @ (1 << np.arange(part.bits))
    scale, bias = pairs(part).numpy().T[..., None]
    wanted = (scale * codes + bias).astype(np.float32)
    assert torch.equal(part(torch.arange(20)), torch.from_numpy(wanted))
    low, high = bias <= table.numpy() + 1e-30, bias + scale * (2**part.bits - 1) >= table.numpy()
    assert (low & high).all(), "codes do not span the row"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_bytes_are_their_formula(rows: int, width: int, block: int) -> None:
    for name, each in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        part = codec_by_name(name).encode(torch.ones(rows, width))
        assert module_bytes(part) == {"rows": rows * width * each}
    part = codec_by_name("fp8").encode(torch.ones(rows, width))
    assert module_bytes(part) == {"codes": rows * width, "scales": 4}
    for name, bits in BITS.items():
        code, pair = (width * bits + 7) // 8, 8 if bits == 8 else 4
        number = {"row": rows, "block": -(-rows // block), "table": 1}
        number["auto"] = number["row" if code > pair else "block"]
        for scales, count in number.items():
            codec = codec_by_name(f"{name}(scales={scales}, block={block})")
            wanted = {"codes": rows * code, "scales": count * pair}
            for table in (torch.ones(rows, width), torch.ones(rows, width, device="meta")):
                part = codec.encode(table)
                assert module_bytes(part) == wanted
                real = sum(b.numel() * b.element_size() for b in part.buffers())
                assert real == sum(wanted.values())


@pytest.mark.parametrize("name", ["fp8", *INTEGERS])
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_chunks_of_rows_change_nothing(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = noise(50, width, seed=width)
    whole = codec_by_name(name).encode(table)
    for module in (integers, floats):
        monkeypatch.setattr(module, "_CHUNK_ROWS", 7)
    parts = codec_by_name(name).encode(table)
    for key, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[key], value)


def test_an_outlier_spoils_what_shares_its_scale() -> None:
    """Its row, its block, or the whole table: the worst error of all other rows."""
    table = noise(640, 16)
    table[100, 3] = 1e3
    others = torch.arange(640) != 100
    worst = {}
    for scales in SHARED:
        error = (encoded(codec_by_name(f"int4(scales={scales})"), table) - table).abs().amax(1)
        worst[scales] = float(error[others].max())
        reached = error > 1.0
        reached[100] = True
        assert int(reached.sum()) == {"row": 1, "block": 64, "table": 640}[scales]
    assert worst["row"] < 0.3 < 3.0 < worst["block"] <= worst["table"]


def test_documented_errors_of_sharing() -> None:
    """The table of docs/methods.md."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "methods.md").read_text("utf-8")
    table = noise(10_000, 16)
    outlier = table.clone()
    outlier[5000, 7] = 100.0
    falling = table * torch.arange(1, 10_001)[:, None] ** -0.25
    for name in BITS:
        for what, rows in (("normal", table), ("falling", falling), ("outlier", outlier)):
            size = falling.std() if what == "falling" else table.std()
            codecs = [codec_by_name(f"{name}(scales={scales})") for scales in SHARED]
            errors = [(encoded(one, rows) - rows).square().mean().sqrt() / size for one in codecs]
            cells = " | ".join(f"{float(error):.4f}" for error in errors)
            assert f"| `{name}` | {what} | {cells} |" in page


def test_what_shares_a_scale_is_shown() -> None:
    shown = {
        "int8": "640 x 16, int8, a scale a row",
        "int4(scales=block)": "640 x 16, int4, a scale for 64 rows",
        "int2(scales=table)": "640 x 16, int2, a scale for all rows",
        "fp8(form=e5m2)": "640 x 16, e5m2, a scale for all rows",
    }
    layer = fe.embedding(fe.Schema([fe.Feature("user", 640)]), "full", dim=16)
    for codec, text in shown.items():
        assert text in repr(layer.freeze(codec))


@pytest.mark.parametrize("text", ["int8(scales=rows)", "int4(block=0)", "fp8(form=e3m4)"])
def test_settings_are_checked(text: str) -> None:
    with pytest.raises(fe.ConfigError, match=text.partition("(")[0]):
        codec_by_name(text)


def test_the_numbers_of_fp8_are_those_of_its_formula() -> None:
    """Sign, exponent and digits of all 256 patterns, and the nearest of them to every number."""
    bits = np.arange(256)
    for form, digits, bias, nans in (("e4m3", 3, 7, 2), ("e5m2", 2, 15, 6)):
        exponent, low = bits >> digits & (2 ** (7 - digits) - 1), bits & (2**digits - 1)
        size = np.where(exponent > 0, 2.0**digits + low, low) * 2.0 ** (
            np.maximum(exponent, 1) - bias - digits
        )
        numbers = np.array(floats._NUMBERS[form])
        finite = np.isfinite(numbers)
        assert (~finite).sum() == (nans if form == "e4m3" else nans + 2)
        assert (numbers == np.where(bits > 127, -size, size))[finite].all()
        table = noise(50, 7) * torch.logspace(-6, 0, 50)[:, None]
        scale = float(table.abs().max()) / numbers[finite].max()
        nearest = np.abs(table.numpy()[..., None] - scale * numbers[finite]).min(-1)
        error = (encoded(codec_by_name(f"fp8(form={form})"), table) - table).abs().numpy()
        assert np.allclose(error, nearest, rtol=1e-3, atol=1e-9)


def test_fp8_keeps_tables_of_small_numbers() -> None:
    """Without a scale, numbers below 2^-10 would be zero."""
    table = noise(200, 16) * 1e-5
    assert not (table.to(torch.float8_e4m3fn).float()).any()
    error = (encoded(codec_by_name("fp8"), table) - table).abs()
    assert (error <= torch.maximum(table.abs() / 16, table.abs().max() / 448 / 1024) * 1.001).all()


@pytest.mark.parametrize("name", fe.codecs())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("width", [1, 16])
def test_rows_that_are_not_finite_are_named(name: str, value: float, width: int) -> None:
    table = torch.zeros(9, width)
    table[6, -1] = value
    with pytest.raises(fe.DataError, match="row 6"):
        codec_by_name(name).encode(table)


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("fp16", 65520.0, "row 4"),
        ("bf16", 3.4e38, "row 4"),
        ("int8", 3.4e38, "row 4"),
        ("int4", -7e4, "row 4"),
        ("int4(scales=block, block=3)", -7e4, "rows 3 to 5"),
        ("int2(scales=table)", -7e4, "rows 0 to 8"),
    ],
)
def test_rows_out_of_range_are_named(name: str, value: float, where: str) -> None:
    table = torch.zeros(9, 16)
    table[4, 1], table[4, 2] = value, -value if name == "int8" else 0.0
    with pytest.raises(fe.DataError, match=where):
        codec_by_name(name).encode(table)


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_the_largest_half_is_in_range(value: float) -> None:
    table = torch.full((3, 16), value)
    for name in ("fp16", "int8", "int4", "int2"):
        assert torch.equal(encoded(codec_by_name(name), table), table)
    assert torch.allclose(encoded(codec_by_name("fp8"), table), table, rtol=1e-6)


def test_unknown_codecs_name_the_nearest() -> None:
    with pytest.raises(fe.ConfigError, match="did you mean 'int8'"):
        fe.check.Case("full").layer().freeze("int9")


@pytest.mark.parametrize(
    "name", [*fe.codecs(), "int8(scales=block, block=3)", "int2(scales=table)"]
)
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 40))
def test_bytes_are_known_from_the_shape(name: str, rows: int, width: int) -> None:
    codec = codec_by_name(name)
    part = codec.encode(torch.empty(rows, width, device="meta"))
    assert codec.stored_bytes(rows, width) == sum(module_bytes(part).values())
