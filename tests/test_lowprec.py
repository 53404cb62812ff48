"""Rows trained in low precision: random rounding, gradients, optimizers, bytes, misuse."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.hashing import mix64_int
from featemb.memory import tensor_bytes
from featemb.quantized import QuantizedTable
from featemb.rounding import round_randomly, to_bfloat16, to_float16, uniforms
from featemb.rows import RowTable

FORMATS = ("int8", "int16", "fp16", "bf16")
FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDINGS = {"fp16": to_float16, "bf16": to_bfloat16}
GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


def made(rows: str, num: int = 40, width: int = 5, reach: float = 1.0) -> QuantizedTable:
    weight = torch.empty(num, width).uniform_(-0.4, 0.4, generator=torch.Generator().manual_seed(0))
    bits = {"int8": 8, "int16": 16}.get(rows)
    step = torch.full((1, 1), reach / 2 ** (bits - 1)) if bits else torch.empty(0)
    return QuantizedTable(weight, rows, step, seed=7)


def everything(table: QuantizedTable) -> Tensor:
    return table.read(torch.arange(table.num_rows))


def draws(count: int = 0, key: int = 12345) -> Tensor:
    return torch.tensor([key, count])


def plain_uniform(key: int, count: int, row: int, column: int, width: int) -> float:
    """The draw of one element, in Python's integers."""
    start = mix64_int(mix64_int(key) + count * GOLDEN)
    hashed = mix64_int(start + (row * ((width + 1) // 2) + column // 2) * GOLDEN & WORD)
    return (hashed >> (32 * (column % 2)) & 0xFFFFFF) / 2**24


def test_draws_are_hashes_of_key_count_row_and_column() -> None:
    rows = torch.tensor([0, 3, 2**40, 17])
    for width in (1, 2, 5):
        found = uniforms(draws(9), rows, width)
        wanted = [[plain_uniform(12345, 9, int(r), c, width) for c in range(width)] for r in rows]
        assert found.tolist() == wanted


def test_draws_are_uniform() -> None:
    """Kolmogorov-Smirnov at the 1e-4 level, for several counts and widths."""
    for count, width in ((0, 7), (1, 8), (2**33, 1)):
        found = uniforms(draws(count), torch.arange(200_000 // width), width).reshape(-1)
        assert float(found.min()) >= 0
        assert float(found.max()) < 1
        n = len(found)
        gap = (found.double().sort().values - (torch.arange(n) + 0.5) / n).abs().max()
        assert float(gap) < 2.23 / math.sqrt(n) + 0.5 / n


def correlation(a: Tensor, b: Tensor) -> float:
    """Correlation in standard errors."""
    return float(torch.corrcoef(torch.stack((a, b)).double())[0, 1]) * math.sqrt(len(a))


def test_draws_of_elements_rows_and_writes_are_independent() -> None:
    """Pairs that a shared or shifted generator would couple: columns, rows, counts, keys."""
    width, rows = 6, torch.arange(50_000)
    first, later, other = (
        uniforms(given, rows, width) for given in (draws(0), draws(1), draws(0, 12346))
    )
    for i in range(width):
        for j in range(i):
            assert abs(correlation(first[:, i], first[:, j])) < 4.5
        assert abs(correlation(first[1:, i], first[:-1, i])) < 4.5
        for shift in (0, 1):
            for unlike in (later, other):
                there = unlike[shift:, i]
                assert abs(correlation(first[: len(there), i], there)) < 4.5


def test_a_row_gets_the_same_draw_in_any_company() -> None:
    alone = uniforms(draws(3), torch.tensor([17]), 5)
    together = uniforms(draws(3), torch.tensor([4, 17, 8]), 5)
    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize("rows", ["fp16", "bf16"])
@given(
    x=st.floats(-6e4, 6e4, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32),
    u=st.integers(0, 2**24 - 1),
)
@settings(max_examples=300, deadline=None)
def test_floats_become_one_of_their_two_neighbours(rows: str, x: float, u: int) -> None:
    kind = FLOATS[rows]
    value = torch.tensor([x])
    rounded = ROUNDINGS[rows](value, torch.tensor([u / 2**24]))
    assert rounded.dtype == kind
    nearest = value.to(kind)
    bits = nearest.view(torch.int16)
    around = torch.stack([nearest, *((bits + d).view(kind) for d in (-1, 1))]).double()
    low = around[around <= value.double()]
    high = around[around >= value.double()]
    # next to zero the patterns of the two signs are apart
    smallest = torch.tensor([1], dtype=torch.int16).view(kind).double()
    allowed = {float(low.max()) if len(low) else -float(smallest)}
    allowed |= {float(high.min()) if len(high) else float(smallest)}
    if abs(x) < float(smallest):
        allowed = {0.0, math.copysign(float(smallest), x)} if x else {0.0}
    assert float(rounded.double()) in allowed


@pytest.mark.parametrize("rows", ["fp16", "bf16"])
def test_floats_of_the_format_stay(rows: str) -> None:
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(FLOATS[rows])
    exact = patterns[torch.isfinite(patterns)]
    for u in (0.0, 0.5, 1 - 2**-24):
        assert torch.equal(ROUNDINGS[rows](exact.float(), torch.full((len(exact),), u)), exact)


@pytest.mark.parametrize("rows", ["fp16", "bf16"])
def test_floats_beyond_the_range_become_its_ends(rows: str) -> None:
    limit = torch.finfo(FLOATS[rows]).max
    huge = torch.tensor([limit * (1 + 2**-9), 3.3e38, limit])
    huge = huge.clamp(max=torch.finfo(torch.float32).max)
    for u in (0.0, 1 - 2**-24):
        for sign in (1, -1):
            rounded = ROUNDINGS[rows](sign * huge, torch.full((3,), u)).double()
            assert rounded.abs().max() <= limit
            assert float(rounded[-1]) == sign * limit


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ("int8", [0.3, -0.3, 0.001, 0.9921, -0.99]),
        ("int16", [0.3, -0.30001, 0.00001, 0.99996, -0.50001]),
        ("fp16", [0.3, -0.30001, 3e-8, 2e-5, 1234.567]),
        ("bf16", [0.3, -0.301, 1e-30, 2e-5, 1234.567]),
    ],
)
def test_rounding_is_unbiased(rows: str, values: list[float]) -> None:
    """The mean of 20,000 writes is the number itself, within 4.5 standard errors."""
    table, count = made(rows, num=200), 100
    weight = torch.tensor(values).expand(200, 5).contiguous()
    index = torch.arange(200)
    total, square = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for _ in range(count):
        table.write(index, weight, torch.zeros_like(weight))
        found = everything(table).double() - weight.double()
        total, square = total + found.sum(0), square + found.square().sum(0)
    n = count * 200
    error = (square / n).sqrt() / math.sqrt(n)
    assert (error > 0).all()  # none of the values is of the format
    assert ((total / n).abs() < 4.5 * error).all()


def test_errors_of_a_write_are_independent() -> None:
    """Elements of a row share no draw: the variance of a row's mean error falls with its width."""
    table = made("int8", num=4000, width=16)
    weight = torch.full((4000, 16), 0.4371)
    table.write(torch.arange(4000), weight, weight)
    error = (everything(table) - weight).double()
    spread = float(error.std())
    assert float(error.mean(1).std()) == pytest.approx(spread / 4, rel=0.1)
    for i in range(1, 16):
        assert abs(correlation(error[:, 0], error[:, i])) < 4.5


def test_numbers_of_the_format_stay_however_often_they_are_written() -> None:
    for rows in FORMATS:
        table = made(rows)
        before = table.codes.clone()
        for _ in range(20):
            table.write(torch.arange(40), everything(table), torch.zeros(40, 5))
        assert torch.equal(table.codes, before)


def test_integers_saturate() -> None:
    for rows, half in (("int8", 128), ("int16", 2**15)):
        table = made(rows, reach=0.5)
        big = torch.tensor([[9.0, -9.0, 0.5, -0.5, 0.4999999]]).expand(40, 5).contiguous()
        table.write(torch.arange(40), big, big)
        found = everything(table)
        top = 0.5 * (half - 1) / half
        assert torch.equal(found[:, :4], torch.tensor([[top, -0.5, top, -0.5]]).expand(40, 4))


def test_small_updates_add_up_where_rounding_to_the_nearest_stalls() -> None:
    """A constant gradient, steps of a fiftieth of a code: 500 of them are 10 codes."""
    table = made("int8", num=1000, width=4)
    start = everything(table)
    optimizer = optim.RowSGD([table.handle], lr=1 / 128 / 50)
    for _ in range(500):
        optimizer.zero_grad()
        table(torch.arange(1000)).sum().backward()
        optimizer.step()
    moved = ((everything(table) - start) * 128).double()
    assert float(moved.mean()) == pytest.approx(-10, abs=4.5 * float(moved.std()) / math.sqrt(4000))
    nearest = start.clone()
    for _ in range(500):
        nearest = ((nearest - 1 / 128 / 50) * 128).round() / 128
    assert torch.equal(nearest, start)


@pytest.mark.parametrize("rows", FORMATS)
def test_gradients_are_those_of_an_fp32_table(rows: str) -> None:
    """Repeated rows, the table read twice, and two backward passes without clearing."""
    table = made(rows)
    plain = RowTable(40, 5, 0.1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain.weight.copy_(everything(table))
    generator = torch.Generator().manual_seed(1)
    indices = [torch.randint(0, 40, (3, 9), generator=generator) for _ in range(4)]
    for one, other in ((indices[0], indices[1]), (indices[2], indices[3])):
        for source in (table, plain):
            vectors = source(one)
            assert vectors.shape == (3, 9, 5)
            (vectors.tanh().square().sum() + (source(other).exp() * 0.1).sum()).backward()
    grad, wanted = table.handle.grad, plain.weight.grad
    assert grad is not None
    assert wanted is not None
    assert torch.allclose(grad.to_dense(), wanted, atol=1e-6)
    untouched = [r for r in range(40) if not any((i == r).any() for i in indices)]
    assert untouched
    assert not grad.to_dense()[untouched].any()


def test_gradients_are_finite_differences() -> None:
    """Moving one code by one moves the loss by its gradient, up to the loss's curvature."""
    table = made("int16").double()
    rows = torch.tensor([3, 5, 3, 9])
    reader = torch.linspace(-1, 1.2, 20, dtype=torch.float64).view(4, 5)

    def loss() -> Tensor:
        total: Tensor = (table(rows).sin() * reader).sum()
        return total

    loss().backward()
    grad = table.handle.grad
    assert grad is not None
    dense = grad.to_dense()
    step = float(table.step)
    for row in (3, 5, 9, 11):
        for column in range(5):
            here = table.codes[row, column].clone()
            table.codes[row, column] = here + 1
            up = float(loss().detach())
            table.codes[row, column] = here - 1
            down = float(loss().detach())
            table.codes[row, column] = here
            assert (up - down) / (2 * step) == pytest.approx(float(dense[row, column]), abs=1e-6)


def test_no_gradient_where_none_is_wanted() -> None:
    table = made("int8")
    with torch.no_grad():
        assert not table(torch.tensor([1])).requires_grad
    table.handle.requires_grad_(False)
    assert not table(torch.tensor([1])).requires_grad


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_steps_are_a_plain_transcription(decay: float) -> None:
    """Row-wise Adagrad and random rounding, one element at a time in Python."""
    table, lr, width = made("int8", num=12, width=3), 0.05, 3
    key, count = (int(one) for one in table.draws)
    assert count == 1  # the initial rows were the first draw
    weight = everything(table).tolist()
    total = [0.0] * 12
    optimizer = optim.RowAdagrad([table.handle], lr=lr, weight_decay=decay, rowwise=True)
    reader = torch.tensor([1.0, -0.5, 0.25])
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        rows = torch.randint(0, 12, (7,), generator=generator)
        optimizer.zero_grad()
        (table(rows) * reader).sum().backward()
        optimizer.step()
        for row in sorted(set(rows.tolist())):
            times = int((rows == row).sum())
            grad = [times * float(reader[c]) + decay * weight[row][c] for c in range(width)]
            total[row] += sum(g * g for g in grad) / width
            for c in range(width):
                number = (weight[row][c] - lr * grad[c] / math.sqrt(total[row])) * 128
                u = plain_uniform(key, count, row, c, width)
                code = math.floor(number) + (u < number - math.floor(number))
                weight[row][c] = max(-128, min(127, code)) / 128
        count += 1
        assert everything(table).tolist() == weight


@pytest.mark.parametrize("rows", FORMATS)
@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_optimizers_update_rows_as_an_fp32_table(rows: str, name: str) -> None:
    """One step from the same numbers differs by less than a step of the format."""
    table = made(rows, reach=1.0)
    plain = RowTable(40, 5, 0.1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain.weight.copy_(everything(table))
    kinds = {"adam": optim.RowAdam, "adagrad": optim.RowAdagrad, "sgd": optim.RowSGD}
    index = torch.tensor([3, 5, 3, 9])
    for source, parameter in ((table, table.handle), (plain, plain.weight)):
        optimizer = kinds[name]([parameter], lr=0.1, weight_decay=0.01)
        source(index).square().sum().backward()
        optimizer.step()
    step = {"int8": 1 / 128, "int16": 2.0**-15, "fp16": 2.0**-11, "bf16": 2.0**-8}[rows]
    apart = (everything(table) - plain.weight.detach()).abs()
    assert float(apart.max()) < step
    assert not apart[[0, 1, 2, 4]].any()


def trained(spec: str, steps: int = 6) -> tuple[LinearReader, list[torch.optim.Optimizer]]:
    model = LinearReader(fe.embedding(SINGLE, spec, dim=8, seed=0))
    optimizers = optim.build(model, lr=0.05)
    run(model, optimizers, 0, steps)
    return model, optimizers


def run(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], first: int, last: int
) -> list[float]:
    losses = []
    for batch in task(12)[first:last]:
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


SPECS = [f"lowprec(rows={rows})" for rows in FORMATS]
OTHERS = [f"lowprec(optimizer={name})" for name in ("adagrad", "adam", "sgd")]


@pytest.mark.parametrize("spec", [*SPECS, *OTHERS])
def test_training_bytes_are_all_live_tensors(spec: str) -> None:
    """Parameters, buffers, gradients and state: found by hand, and equal to `memory`."""
    model, optimizers = trained(spec)
    layer = model.layer
    live = [*layer.parameters(), *layer.buffers()]
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len(grads) == 1
    state = [
        value
        for one in optimizers
        for p, values in one.state.items()
        if any(p is q for q in layer.parameters())
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    counted = layer.memory(optimizers)
    assert counted.training == sum(map(tensor_bytes, [*live, *grads, *state]))
    n, rows = 147, layer.config.rows
    assert sum(map(tensor_bytes, live)) == n * 8 * (1 if rows == "int8" else 2) + 16 + (
        4 if rows.startswith("int") else 0
    )
    wanted = {"rmsprop": 8 * n + 8, "adagrad": 4 * n, "adam": 8 * n * 8 + 4, "sgd": 0}
    assert sum(map(tensor_bytes, state)) == wanted[layer.config.optimizer]


def test_training_takes_a_fraction_of_the_bytes() -> None:
    """At width 16: 20 bytes a row, beside 68 of fp32 with the same state and 192 with Adam's."""
    schema = fe.Schema([fe.Feature("a", 10_000)])

    def bytes_of(spec: str, name: str, **settings: bool) -> float:
        layer = fe.embedding(schema, spec, dim=16)
        kind = {"row_adam": optim.RowAdam, "row_adagrad": optim.RowAdagrad}[name]
        optimizer = kind(layer.parameters(), **settings)
        layer(torch.tensor([[0]])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return layer.memory(optimizer).training / 10_000

    ours = bytes_of("lowprec", "row_adagrad", rowwise=True)
    assert ours == pytest.approx(20, abs=0.01)
    assert bytes_of("full", "row_adagrad", rowwise=True) == pytest.approx(68, abs=0.01)
    assert bytes_of("full", "row_adam") == pytest.approx(192, abs=0.01)
    assert ours < 0.45 * bytes_of("full", "row_adagrad", rowwise=True)


@pytest.mark.parametrize("spec", SPECS)
def test_serving_bytes_are_the_formula(spec: str) -> None:
    for device in ("cpu", "meta"):
        layer = fe.embedding(SINGLE, spec, dim=8, device=device)
        size = 1 if "int8" in spec else 2
        assert layer.memory().serving == 147 * 8 * size + (4 if "int" in spec else 0)


@pytest.mark.parametrize("spec", [*SPECS, "lowprec(rows=int16, optimizer=adam)"])
def test_copies_go_on_alike(spec: str) -> None:
    """Deep copies, pickles and state dicts with optimizer states: the same bits from there on."""
    model, optimizers = trained(spec)
    model.eval()
    twin, paired = copy.deepcopy((model, optimizers))
    pickled = pickle.loads(pickle.dumps(model))
    other = LinearReader(fe.embedding(SINGLE, spec, dim=8, seed=99))
    file = io.BytesIO()
    torch.save((model.state_dict(), [one.state_dict() for one in optimizers]), file)
    run(model, optimizers, 6, 12)
    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    assert all(value.layout == torch.strided for value in weights.values())
    made = {"twin": (twin, paired), "pickled": (pickled, optim.build(pickled, lr=0.05))}
    other.load_state_dict(weights)
    made["other"] = (other, optim.build(other, lr=0.05))
    for name, (again, theirs) in made.items():
        if name != "twin":
            for optimizer, state in zip(theirs, states, strict=True):
                optimizer.load_state_dict(copy.deepcopy(state))
        run(again, theirs, 6, 12)
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), (name, key)


def test_a_copy_is_separate() -> None:
    model, optimizers = trained("lowprec")
    twin = copy.deepcopy(model)
    before = copy.deepcopy(twin.state_dict())
    run(model, optimizers, 6, 9)
    assert all(torch.equal(before[k], v) for k, v in twin.state_dict().items())
    assert not torch.equal(model.layer(single_ids()), twin.layer(single_ids()))


def test_a_table_of_another_shape_or_format_is_refused() -> None:
    state = fe.embedding(SINGLE, "lowprec", dim=8).state_dict()
    for spec, dim in (("lowprec", 4), ("lowprec(rows=fp16)", 8)):
        with pytest.raises(RuntimeError, match=r"codes|step"):
            fe.embedding(SINGLE, spec, dim=dim).load_state_dict(state)


@pytest.mark.parametrize(
    "kind",
    [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.SGD, torch.optim.NAdam],
)
def test_optimizers_of_torch_fail_loudly(kind: type[torch.optim.Optimizer]) -> None:
    layer = fe.embedding(SINGLE, "lowprec", dim=8)
    optimizer = kind(layer.parameters(), lr=0.1)  # type: ignore[call-arg]

    def step() -> None:
        optimizer.zero_grad()
        layer(single_ids()).sum().backward()
        optimizer.step()

    def train() -> None:
        step()
        step()

    with pytest.raises((RuntimeError, fe.FeatembError), match=r"sparse|optimizer of torch"):
        train()


def test_dense_adam_refuses_the_rows() -> None:
    layer = fe.embedding(SINGLE, "lowprec", dim=8)
    with pytest.raises(fe.ConfigError, match=r"DenseAdam cannot train low-precision rows"):
        optim.DenseAdam(layer.parameters())
    assert len(optim.build(LinearReader(layer), lr=0.1, optimizer="dense_adam")) == 2


def test_numbers_that_are_not_finite_are_refused() -> None:
    for bad in (math.nan, math.inf):
        for rows in FORMATS:
            table = made(rows)
            before = table.codes.clone()
            weight = torch.zeros(2, 5)
            weight[1, 3] = bad
            with pytest.raises(fe.DataError, match="row 9 is not finite"):
                table.write(torch.tensor([4, 9]), weight, weight)
            assert torch.equal(table.codes, before)


def test_scaled_losses_are_unscaled() -> None:
    """Mixed precision scales the loss; its scaler finds and unscales the row gradients."""
    table = made("int8")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = optim.RowSGD([table.handle], lr=0.1)
    scaler.scale(table(torch.tensor([3, 3])).sum()).backward()
    scaler.unscale_(optimizer)
    grad = table.handle.grad
    assert grad is not None
    assert torch.equal(grad.to_dense()[3], torch.full((5,), 2.0))


def test_initial_rows_fit_the_reach() -> None:
    """A reach below init, as another method may hand down, is raised to it."""
    layer = fe.embedding(SINGLE, "lowprec(reach=0.01, init=0.5)", dim=8)
    assert float(layer(single_ids()).detach().abs().max()) > 0.45


@pytest.mark.parametrize(
    "spec",
    ["lowprec(rows=int4)", "lowprec(reach=0.0)", "lowprec(rate=-1.0)", "lowprec(optimizer=lion)"],
)
def test_settings_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(fe.ConfigError, match="lowprec"):
        fe.parse(spec)


def test_reading_rounding_and_writing_keep_integers_exact() -> None:
    """Whatever the step, a code read and written back is the same code or, rarely, a neighbour."""
    x = torch.tensor([0.1, 1.0, -3.0])
    assert torch.equal(
        round_randomly(x, torch.tensor([0.0999, 0.0, 0.0])), torch.tensor([1.0, 1, -3])
    )
    assert torch.equal(
        round_randomly(x, torch.tensor([0.1001, 0.5, 0.9])), torch.tensor([0.0, 1, -3])
    )
