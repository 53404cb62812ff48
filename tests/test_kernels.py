"""Kernels of integer rows: every way to read them gives the same numbers, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import featemb as fe
from featemb import kernels
from featemb.codecs.base import codec_by_name
from featemb.codecs.integers import IntRows

BITS = (8, 4, 2)
FORMS = [
    *(f"int{bits}(scales={one}, block=7)" for bits in BITS for one in ("row", "block", "table")),
    *("fp8", "fp8(form=e5m2)", "fp16", "bf16"),
]
SCHEMA = fe.Schema([fe.Feature("user", 300), fe.Feature("movie", 70)])


def noise(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def picked(rows: int, number: int = 50) -> Tensor:
    found = torch.randint(0, rows, (number,), generator=torch.Generator().manual_seed(1))
    found[0], found[-1] = rows - 1, 0
    return found


def fused(rows: int, width: int, bits: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    table = noise(rows, width, seed=bits) * scale + offset
    part = codec_by_name(f"int{bits}(scales=row)").encode(table)
    assert isinstance(part, IntRows)
    return part.rows


@pytest.fixture
def forget() -> Iterator[None]:
    """Which kernels work is found out anew, before the test and after it."""
    kernels._working_kernel.cache_clear()
    yield
    kernels._working_kernel.cache_clear()


@pytest.mark.parametrize("bits", BITS)
def test_this_build_has_the_kernels(bits: int) -> None:
    name = f"embedding_bag_{kernels._KERNELS[bits]}_rowwise_offsets"
    if not hasattr(torch.ops.quantized, name) or torch.backends.quantized.engine == "none":
        pytest.skip(f"this build of torch has no {name}")
    assert kernels._working_kernel(bits) is not None


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(BITS),
    st.sampled_from([1e-40, 1e-7, 1e-3, 1.0, 1e3]),
    st.sampled_from([0.0, 1.0, -300.0]),
)
def test_kernels_give_the_numbers_of_plain_code(
    rows: int, width: int, bits: int, scale: float, offset: float
) -> None:
    table, wanted = fused(rows, width, bits, scale, offset), picked(rows)
    plain = kernels.read_fused_plainly(table, wanted, bits, width)
    assert torch.equal(kernels.read_fused(table, wanted, bits, width), plain)
    each = kernels.code_bytes(width, bits)
    codes = table[wanted, :each]
    pairs = table[wanted, each:].contiguous().view(kernels.pair_dtype(bits))
    assert torch.equal(kernels.dequantise(codes, pairs, bits, width), plain)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("how", ["absent", "raising", "wrong"])
def test_a_broken_kernel_is_the_slower_way(
    bits: int, how: str, monkeypatch: pytest.MonkeyPatch, forget: None
) -> None:
    table, wanted = fused(30, 16, bits), picked(30)
    good = kernels.read_fused(table, wanted, bits, 16)
    calls = []

    def broken(*_: Any) -> Tensor:
        calls.append(how)
        if how == "raising":
            raise RuntimeError("not made for this machine")
        return torch.zeros(4, 32 // bits)

    name = f"embedding_bag_{kernels._KERNELS[bits]}_rowwise_offsets"
    if how == "absent":
        monkeypatch.setitem(kernels._KERNELS, bits, "no_such_kernel")
    else:
        monkeypatch.setattr(torch.ops.quantized, name, broken)
    kernels._working_kernel.cache_clear()
    assert torch.equal(kernels.read_fused(table, wanted, bits, 16), good)
    assert kernels._working_kernel(bits) is None
    assert len(calls) == (how != "absent")  # tried once, on a table of its own


@pytest.mark.parametrize("codec", FORMS)
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_exported_rows_are_the_same(codec: str, width: int) -> None:
    part, rows = codec_by_name(codec).encode(noise(40, width)), picked(40, 12).view(3, 4)
    program = torch.export.export(part, (rows,)).module()
    assert torch.equal(program(rows), part(rows))


def test_every_pair_is_put_together_exactly_when_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes to floats by arithmetic: every finite fp16, and fp32 of every exponent."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    halves = halves[torch.isfinite(halves)]
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    random[:4] = 0, 1, 2**31 + 1, 2**23 - 1
    singles = torch.from_numpy(random.view(np.float32))
    singles = singles[torch.isfinite(singles)]
    monkeypatch.setattr(kernels, "tracing", lambda: True)
    for bits, numbers in ((4, halves), (8, singles)):
        pairs = numbers[: len(numbers) // 2 * 2].view(-1, 2)
        found = kernels._pairs(pairs.contiguous().view(torch.uint8), bits)
        assert torch.equal(found, pairs.float())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch
@pytest.mark.parametrize("codec", FORMS)
def test_frozen_layers_are_the_same_in_onnx(codec: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    frozen = fe.embedding(SCHEMA, "full", dim=16).freeze(codec)
    ids = torch.stack([picked(300), picked(70)], 1)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(frozen, (ids[:8],), dynamic_shapes=({0: batch},))
    path = tmp_path / "layer.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(path))
    session = runtime.InferenceSession(str(path))
    (found,) = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    assert torch.equal(torch.from_numpy(found), frozen(ids))


@pytest.mark.parametrize("codec", FORMS)
def test_any_shape_of_rows_is_read(codec: str) -> None:
    table = noise(40, 5)
    part = codec_by_name(codec).encode(table)
    every = part(torch.arange(40))
    for shape in ((), (0,), (0, 3), (1,), (6, 4), (2, 3, 4)):
        rows = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(2))
        found = part(rows)
        assert found.shape == (*shape, 5)
        assert torch.equal(found, every[rows])


@pytest.mark.parametrize("codec", FORMS)
def test_rows_may_lie_apart(codec: str) -> None:
    part = codec_by_name(codec).encode(noise(40, 16))
    rows = picked(40, 60).view(20, 3)
    assert torch.equal(part(rows[:, 1]), part(rows[:, 1].clone()))
    assert torch.equal(part(rows.t()), part(rows).transpose(0, 1))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 16, 24])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_bytes_are_gathered_from_any_address(width: int, shift: int) -> None:
    """Files are mapped at addresses that are no multiple of a row."""
    memory = torch.randint(0, 256, (50 * width + shift,)).to(torch.uint8)
    table, rows = memory[shift:].view(50, width), picked(50)
    assert torch.equal(kernels.gather_bytes(table, rows), table[rows])


def test_a_loaded_layer_reads_its_file_in_place(tmp_path: Path) -> None:
    """No second copy of the codes is made for a kernel, at loading or at a lookup."""
    layer = fe.embedding(SCHEMA, "full", dim=16).freeze("int8")
    layer.save(tmp_path / "layer")
    again = fe.load(tmp_path / "layer")
    before = {name: one.data_ptr() for name, one in again.state_dict().items()}
    assert torch.equal(again(torch.tensor([[7, 8]])), layer(torch.tensor([[7, 8]])))
    assert {name: one.data_ptr() for name, one in again.state_dict().items()} == before
    held = [one for one in vars(again.source.rows).values() if isinstance(one, Tensor)]
    assert not held
    assert sum(again.memory().parts.values()) == 370 * (16 + 8)


@pytest.mark.parametrize("bits", BITS)
def test_fbgemm_reads_the_same_numbers(bits: int) -> None:
    """Another implementation of scale times code plus bias; it wants fp16 pairs in front."""
    pytest.importorskip("fbgemm_gpu", reason="FBGEMM is not installed")
    from featemb.benchmarks.speed import fbgemm_rows

    if bits == 8:
        table = (fused(30, 16, 4)[:, :8].repeat(1, 2), fused(30, 16, 4)[:, 8:])
    else:
        each = kernels.code_bytes(16, bits)
        table = (fused(30, 16, bits)[:, :each], fused(30, 16, bits)[:, each:])
    codes, pairs = table
    rows = picked(30)
    found = fbgemm_rows.lookup(torch.cat((pairs, codes), 1), rows, bits, 16)
    floats = pairs.contiguous().view(torch.float16)[rows]
    assert torch.equal(found, kernels.dequantise(codes[rows], floats, bits, 16))


def test_serving_integers_imports_no_fbgemm() -> None:
    code = (
        "import sys, torch, featemb as fe\n"
        "layer = fe.embedding(fe.Schema([fe.Feature('a', 9)]), 'full', dim=16).freeze('int8')\n"
        "layer(torch.tensor([[3]]))\n"
        "print([name for name in sys.modules if name.startswith('fbgemm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
