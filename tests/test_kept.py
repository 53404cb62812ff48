"""Indexes of kept positions, the sparse tables made of them, and magnitude pruning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import featemb as fe
from featemb import staging
from featemb.check.case import SINGLE, LinearReader, single_ids
from featemb.codecs.base import Codec
from featemb.codecs.floats import Fp32
from featemb.codecs.integers import Int8
from featemb.memory import module_bytes
from featemb.parts.base import Part
from featemb.parts.kept import (
    BitIndex,
    EveryPosition,
    KeptRows,
    KeptWeights,
    ListIndex,
    index_bytes,
    smallest_index,
)
from featemb.parts.masked import MaskedRows, keep_largest
from featemb.rows import RowTable

BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
FORMS: dict[str, Callable[[Tensor, int], Part]] = {
    "bits": BitIndex.of,
    "bytes": lambda kept, total: ListIndex.of(kept, total, 2**8),
    "words": lambda kept, total: ListIndex.of(kept, total, 2**16),
    "odd": lambda kept, total: ListIndex.of(kept, total, 37),
    "smallest": smallest_index,
}


def drawn(total: int, count: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=source)[:count].sort().values


def size(part: nn.Module) -> int:
    return sum(module_bytes(part).values())


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(total=st.integers(1, 1500), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_indexes_give_ranks(form: str, total: int, share: float, seed: int) -> None:
    kept = drawn(total, max(1, round(total * share)), seed)
    wanted = np.full(total, -1)
    wanted[kept.numpy()] = np.arange(len(kept))
    index = FORMS[form](kept, total)
    assert np.array_equal(index(torch.arange(total)).numpy(), wanted)
    pairs = torch.arange(total).repeat(2).view(2, -1)
    assert index(pairs).shape == (2, total)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [[0], [199_999], [0, 63, 64, 255, 256, 65_535, 65_536, 199_999]])
def test_borders_of_words_and_blocks(form: str, kept: list[int]) -> None:
    index = FORMS[form](torch.tensor(kept), 200_000)
    found = index(torch.arange(200_000))
    assert found[kept].tolist() == list(range(len(kept)))
    assert int((found >= 0).sum()) == len(kept)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 300_000), share=st.floats(0, 1))
def test_the_smallest_form_is_chosen_and_counted(total: int, share: float) -> None:
    count = max(1, round(total * share))
    kept = drawn(total, count)
    sizes = [size(form(kept, total)) for name, form in FORMS.items() if name in _REAL]
    chosen = size(smallest_index(kept, total))
    assert chosen == (0 if count == total else min(sizes))
    assert chosen == index_bytes(count, total)
    assert chosen == size(smallest_index(kept.to("meta"), total))
    assert chosen <= 0.19 * total + 24, "never four bytes a position"


_REAL = ("bits", "bytes", "words")


def test_nothing_kept_is_an_error_and_everything_takes_no_bytes() -> None:
    with pytest.raises(fe.ConfigError, match="at least one"):
        smallest_index(torch.tensor([], dtype=torch.int64), 10)
    assert isinstance(smallest_index(torch.arange(10), 10), EveryPosition)


@pytest.mark.parametrize("share", [0.003, 0.1, 0.6])
def test_sparse_tables_read_as_dense_ones(share: float) -> None:
    table = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    rows = torch.randint(500, (7, 4), generator=torch.Generator().manual_seed(2))
    for width, whole in ((1, True), (6, False)):
        keep = torch.zeros(500 * width, dtype=torch.bool)
        kept = drawn(500 * width, max(1, int(500 * width * share)))
        keep[kept] = True
        dense = torch.where(keep.view(500, width), table, 0.0)
        index = smallest_index(kept, 500 * width)
        for codec, bound in ((Fp32(), 0.0), (Int8(), 0.04)):
            if whole:
                part: Part = KeptRows(index=index, rows=codec.encode(table[kept]))
            else:
                values = codec.encode(table.flatten()[kept][:, None])
                part = KeptWeights(index=index, values=values, width=6)
            assert (part(rows) - dense[rows]).abs().max() <= bound
            assert not part(rows)[dense[rows] == 0].any()


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_tables_take_any_shape(form: str, shape: tuple[int, ...]) -> None:
    table = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    rows = torch.randint(300, shape, generator=torch.Generator().manual_seed(2))
    for total, whole in ((300, True), (1500, False)):
        kept = drawn(total, total // 4)
        keep = torch.zeros(total, dtype=torch.bool).index_fill_(0, kept, True).view(300, -1)
        index, numbers = FORMS[form](kept, total), table.flatten()
        codec: Codec
        for codec in (Fp32(), Int8()):
            stored = table[kept] if whole else numbers[kept][:, None]
            coded = codec.encode(stored)
            part: Part = KeptRows(index=index, rows=coded)
            if not whole:
                part = KeptWeights(index=index, values=coded, width=5)
            found, wanted = part(rows), torch.where(keep, table, 0.0)[rows]
            assert found.shape == (*shape, 5)
            bound = 0.0 if isinstance(codec, Fp32) else float(codec.error_bound(stored).max())
            assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("share", [0.001, 0.05, 0.9])
@pytest.mark.parametrize("width", [1, 255, 257, 700])
@pytest.mark.parametrize("form", FORMS)
def test_rows_may_span_blocks(form: str, width: int, share: float) -> None:
    table = torch.randn(40, width, generator=torch.Generator().manual_seed(1))
    kept = drawn(40 * width, max(1, int(40 * width * share)))
    keep = torch.zeros(40 * width, dtype=torch.bool).index_fill_(0, kept, True).view(40, width)
    values = Fp32().encode(table.flatten()[kept][:, None])
    part = KeptWeights(index=FORMS[form](kept, 40 * width), values=values, width=width)
    assert torch.equal(part(torch.arange(40)), torch.where(keep, table, 0.0))


def masked(rows: int, width: int, unit: int, count: int) -> MaskedRows:
    """Return a table of which ``count`` of its rows (unit 1) or numbers (unit ``width``) remain."""
    table = RowTable(rows, width, 1.0, torch.Generator().manual_seed(4))
    keep = torch.zeros(rows * unit, dtype=torch.bool).index_fill_(
        0, drawn(rows * unit, count), True
    )
    return MaskedRows(rows=table, keep=keep.view(rows, unit), kept=count).eval()


@pytest.mark.parametrize("name", ["fp32", "int8"])
@pytest.mark.parametrize("whole", [True, False])
@settings(max_examples=60, deadline=None)
@example(rows=2, width=5, share=1.0)
@example(rows=200, width=1, share=0.99)
@example(rows=700, width=9, share=0.002)
@given(rows=st.integers(1, 700), width=st.integers(1, 9), share=st.floats(0, 1))
def test_tables_are_served_in_the_form_of_fewest_bytes(
    name: str, whole: bool, rows: int, width: int, share: float
) -> None:
    codec: Codec = Fp32() if name == "fp32" else Int8()
    unit = 1 if whole else width
    total = rows * unit
    count = max(1, round(share * total))
    part = masked(rows, width, unit, count)
    served = part.frozen(codec)
    each = width // unit
    dense = size(codec.encode(torch.empty(rows, width, device="meta")))
    sparse = size(codec.encode(torch.empty(count, each, device="meta"))) + index_bytes(count, total)
    # nothing pruned is the plain table, with the codec's scales of every row
    assert size(served) == (dense if count == total else min(dense, sparse))
    numbers = torch.arange(rows)
    wanted, found = part(numbers), served(numbers)
    if name == "fp32":
        assert torch.equal(found, wanted)
    elif isinstance(served, (KeptRows, KeptWeights)):
        assert not found[wanted == 0].any()
    bound = 0.0 if name == "fp32" else 0.006  # half of 2 / 255, the rounding of scales included
    assert ((found - wanted).abs() <= bound).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1), st.data())
def test_equal_scores_go_to_the_preferred_then_to_the_first(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(pairs)))
    scores, prefer = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    scores = torch.where(scores == 2, float("inf"), scores)
    scores = torch.where(scores == -2, float("-inf"), scores)
    keep = keep_largest(scores[:, None], count, prefer=prefer)
    assert keep.shape == (len(pairs), 1)
    order = sorted(range(len(pairs)), key=lambda i: (-pairs[i][0], -pairs[i][1], i))
    assert keep.flatten().nonzero()[:, 0].tolist() == sorted(order[:count])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_exactly_as_many_as_asked_are_kept(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    keep = keep_largest(torch.tensor(scores, dtype=torch.float32), count)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert keep.nonzero()[:, 0].tolist() == sorted(order[:count])


def test_ties_go_to_the_preferred_and_nan_is_refused() -> None:
    keep = keep_largest(torch.zeros(5), 2, prefer=torch.tensor([1.0, 5.0, 2.0, 7.0, 7.0]))
    assert keep.tolist() == [False, False, False, True, True]
    with pytest.raises(fe.DataError, match="entry 1 has no score"):
        keep_largest(torch.tensor([1.0, float("nan")]), 1)


@pytest.mark.parametrize("unit", ["weights", "rows"])
def test_magnitude_keeps_the_largest(unit: str) -> None:
    layer = fe.embedding(SINGLE, f"magnitude(unit={unit}, kept=40)", dim=8, seed=4)
    size_of = layer.weight.detach().abs()
    size_of = size_of.sum(1, keepdim=True) if unit == "rows" else size_of
    best = size_of.flatten().argsort(descending=True)[:40]
    layer.eval()
    assert sorted(layer.masked.keep.flatten().nonzero()[:, 0].tolist()) == sorted(best.tolist())
    ids = single_ids()
    assert torch.equal(layer.freeze()(ids), layer(ids))
    staging.begin(layer, layer.stages()[1])
    layer.train()
    out = layer(ids)
    out.sum().backward()
    keep = layer.masked.keep.expand_as(layer.weight)
    assert not layer.weight.grad[~keep].any()
    assert torch.equal(layer.eval()(ids), out)


@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
@pytest.mark.parametrize(("unit", "most"), [("weights", 6), ("rows", 66)])
def test_magnitude_meets_its_budget_to_one_entry(unit: str, most: int, ratio: int) -> None:
    layer = fe.embedding(BIG, f"magnitude(unit={unit})", dim=16, ratio=ratio)
    limit = BIG.full_bytes(16) / ratio
    assert limit - most < layer.memory().serving <= limit
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(BIG, f"magnitude(unit={unit})", dim=16, budget=3)
    floor = caught.value.floor
    small = fe.embedding(BIG, f"magnitude(unit={unit})", dim=16, budget=floor)
    assert small.memory().serving <= floor


def test_an_id_never_seen_mostly_reads_zeros() -> None:
    net = LinearReader(fe.embedding(SINGLE, "magnitude(kept=100)", dim=8, seed=1))
    optimizer = fe.optim.RowAdam(net.parameters(), lr=0.05)
    ids = single_ids(256)
    ids[:, 0] %= 50  # users from 50 on never occur
    for _ in range(20):
        net.zero_grad()
        nn.functional.softplus(-net(ids)).mean().backward()
        optimizer.step()
    unseen = torch.tensor([[60, 0, 0, 0], [96, 1, 1, 1]])
    assert not net.layer.eval()(unseen)[:, :8].any()


class Rows(nn.Module):
    """The served rows of several layers, by row number."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(rows) for part in self.parts)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch
def test_sparse_forms_are_the_same_in_export_and_in_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    table = torch.randn(3000, 4, generator=torch.Generator().manual_seed(3))
    parts: list[nn.Module] = []
    for form in ("bits", "bytes", "words"):
        kept = drawn(3000, 700)
        parts.append(KeptRows(index=FORMS[form](kept, 3000), rows=Fp32().encode(table[kept])))
        kept = drawn(12_000, 900)
        values = Fp32().encode(table.flatten()[kept][:, None])
        parts.append(KeptWeights(index=FORMS[form](kept, 12_000), values=values, width=4))
    rows = Rows(parts).eval()
    count = torch.export.Dim("count", min=2, max=4096)
    program = torch.export.export(rows, (torch.arange(8),), dynamic_shapes=({0: count},))
    path = tmp_path / "rows.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    numbers = torch.arange(3000)
    given = session.run(None, {session.get_inputs()[0].name: numbers.numpy()})
    both = zip(rows(numbers), program.module()(numbers), given, strict=True)
    for wanted, ours, theirs in both:
        assert torch.equal(ours, wanted)
        assert np.array_equal(theirs, wanted.numpy())
