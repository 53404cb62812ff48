"""LSQ: values, gradients by the published formula, the stored form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.check.case import SINGLE, single_ids
from featemb.memory import module_bytes
from featemb.parts.fake_quant import FakeQuantRows, levels
from featemb.rows import RowTable


def rows_of(bits: int, offset: bool = False, width: int = 5) -> FakeQuantRows:
    table = RowTable(40, width, 0.3, torch.Generator().manual_seed(bits))
    start = 0.3 / math.sqrt(max(1, 2 ** (bits - 1) - 1))
    shift = torch.linspace(-0.1, 0.1, width)
    return FakeQuantRows(
        rows=table,
        step=nn.Parameter(torch.full((1, 1), start)),
        offset=nn.Parameter(shift) if offset else torch.zeros(0),
        bits=bits,
    ).double()


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_gradients_are_those_of_the_paper(bits: int, offset: bool) -> None:
    """Esser et al. (2020), equations 3 to 5, element by element."""
    part = rows_of(bits, offset)
    index = torch.tensor([[3, 9], [9, 0]])
    upstream = torch.randn(2, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = part(index)
    (out * upstream).sum().backward()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = float(part.step.detach())
    shift = part.offset.detach() if offset else torch.zeros(5)
    to_weight, to_step, to_offset = torch.zeros(40, 5), 0.0, torch.zeros(5)
    for place, row in zip(((0, 0), (0, 1), (1, 0), (1, 1)), (3, 9, 9, 0), strict=True):
        for column in range(5):
            v = float(part.rows.weight.detach()[row, column] - shift[column]) / step
            g = float(upstream[(*place, column)])
            code = min(max(round(v), low), high)
            value = float(out.detach()[(*place, column)])
            assert value == pytest.approx(code * step + float(shift[column]))
            if low < v < high:
                to_weight[row, column] += g
                to_step += g * (code - v)
            else:
                to_step += g * code
                to_offset[column] += g
    assert torch.allclose(part.rows.weight.grad, to_weight.double(), atol=1e-6)
    assert float(part.step.grad) == pytest.approx(to_step / math.sqrt(20 * max(1, high)), rel=1e-6)
    if offset:
        assert torch.allclose(part.offset.grad, to_offset.double(), atol=1e-6)


def test_rounding_passes_gradients_in_training_alone() -> None:
    x = torch.tensor([-3.0, -0.4, 0.6, 1.2], requires_grad=True)
    for training, wanted in ((True, [0.0, 1.0, 1.0, 0.0]), (False, [0.0] * 4)):
        (grad,) = torch.autograd.grad(levels(x, -2, 1, training).sum(), x)
        assert grad.tolist() == wanted
    assert levels(x, -2, 1, training=True).tolist() == [-2.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("width", [1, 3, 16])
def test_bytes_are_packed_codes_and_one_step(bits: int, width: int) -> None:
    layer = fe.embedding(SINGLE, f"lsq(bits={bits})", dim=width)
    parts = layer.freeze().memory().parts
    assert parts == {"codes": 147 * math.ceil(width * bits / 8), "scales": 4}
    with_offset = fe.embedding(SINGLE, f"lsq(bits={bits}, offset=true)", dim=width)
    assert with_offset.memory().parts["scales"] == 4 + 4 * width


def test_served_numbers_are_multiples_of_the_step() -> None:
    layer = fe.embedding(SINGLE, "lsq(bits=4)", dim=8)
    step = float(layer.source.rows.step.detach())
    codes = layer.freeze()(single_ids()) / step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert codes.min() >= -8
    assert codes.max() <= 7


def test_a_step_below_zero_is_read_as_its_size() -> None:
    part = rows_of(4).eval()
    before = part(torch.arange(40))
    with torch.no_grad():
        part.step.neg_()
    assert torch.equal(part(torch.arange(40)), before)
    with torch.no_grad():
        part.step.zero_()
    assert torch.isfinite(part(torch.arange(40))).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    layer = fe.embedding(SINGLE, "lsq", dim=4)
    with torch.no_grad():
        layer.source.rows.rows.weight[17, 2] = value
    with pytest.raises(fe.DataError, match="row 17"):
        layer.freeze()


def test_only_rows_and_step_are_trained_at_their_own_rates() -> None:
    layer = fe.embedding(SINGLE, "lsq(bits=8, step_lr=2.0)", dim=4)
    rows, small = layer.param_groups(0.01)
    assert rows["params"][0].shape == (147, 4)
    start = 0.05 / math.sqrt(127)
    assert small["lr"] == pytest.approx(0.01 * start * 2)
    assert small["weight_decay"] == 0.0
    owned: list[Tensor] = [*rows["params"], *small["params"]]
    assert len(owned) == len(list(layer.parameters()))


def test_codes_of_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from featemb.parts import fake_quant

    layer = fe.embedding(SINGLE, "lsq(bits=2)", dim=5)
    whole = layer.freeze()
    monkeypatch.setattr(fake_quant, "_CHUNK", 13)
    for name, tensor in layer.freeze().state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    assert sum(module_bytes(whole).values()) == layer.memory().serving
