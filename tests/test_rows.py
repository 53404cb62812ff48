"""Row tables: gather, grouping and row gradients against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb import optim
from featemb.rows import (
    RowTable,
    copy_rows,
    distinct_rows,
    gather_rows,
    reset_rows,
    sum_groups,
    touched_rows,
    write_rows,
)

BAGGED = fe.Schema([fe.Feature("a", 9, multi=True), fe.Feature("b", 9, multi=True, pooling="max")])
NO_IDS = fe.Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))

lookups = st.lists(st.integers(0, 11), max_size=40)


@settings(deadline=None)
@given(lookups, st.integers(1, 9))
def test_groups_sum_like_a_loop(rows: list[int], width: int) -> None:
    values = torch.randn(len(rows), width, generator=torch.Generator().manual_seed(len(rows)))
    distinct, order, starts = distinct_rows(torch.tensor(rows, dtype=torch.int64), 12)
    summed = sum_groups(values, order, starts)
    assert distinct.tolist() == sorted(set(rows))
    for row, given_sum in zip(distinct.tolist(), summed, strict=True):
        wanted = sum(value for one, value in zip(rows, values, strict=True) if one == row)
        assert torch.allclose(given_sum, wanted, atol=1e-5)


@settings(deadline=None)
@given(lookups, st.integers(1, 9))
def test_row_gradients_are_the_dense_ones(rows: list[int], width: int) -> None:
    dense = RowTable(12, width, 0.1, torch.Generator().manual_seed(0))
    sparse = RowTable(12, width, 0.1, torch.Generator().manual_seed(0))
    optim.RowSGD(sparse.parameters())
    index = torch.tensor(rows, dtype=torch.int64)
    for table in (dense, sparse):
        (table(index).square() * 1.5).sum().backward()
    touched, values = touched_rows(sparse.weight.grad)
    assert touched.tolist() == sorted(set(rows))
    assert torch.allclose(sparse.weight.grad.to_dense(), dense.weight.grad, atol=1e-6)
    assert values.shape == (len(set(rows)), width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_gather_is_indexing(dtype: torch.dtype, width: int) -> None:
    table = torch.randn(20, width, dtype=torch.float64).to(dtype)
    rows = torch.tensor([19, 0, 0, 7])
    assert torch.equal(gather_rows(table, rows), table[rows])


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)), st.integers(1, 17))
def test_writing_changes_the_named_rows_only(rows: set[int], width: int) -> None:
    index = torch.tensor(sorted(rows, reverse=True), dtype=torch.int64)
    table, values = torch.randn(31, width), torch.randn(len(rows), width)
    wanted = table.numpy().copy()
    wanted[index.numpy()] = values.numpy()
    write_rows(table, index, values)
    assert np.array_equal(table.numpy(), wanted)


def test_a_table_of_a_transposed_view_is_written_too() -> None:
    table = torch.zeros(4, 8).t()  # not contiguous: 16-byte elements cannot be used
    write_rows(table, torch.tensor([7, 2]), torch.ones(2, 4))
    assert table.sum(1).tolist() == [0, 0, 4, 0, 0, 0, 0, 4]


@pytest.mark.parametrize("name", ["row_adam", "row_adagrad", "row_sgd", "dense_adam"])
def test_a_batch_of_empty_bags_trains(name: str) -> None:
    layer = fe.embedding(BAGGED, "full", dim=4)
    before = layer.source.rows.weight.detach().clone()
    (optimizer,) = optim.build(layer, lr=0.1, optimizer=name)
    out = layer(NO_IDS)
    out.sum().backward()
    optimizer.step()
    assert torch.equal(out, torch.zeros(3, 8))
    assert torch.equal(layer.source.rows.weight, before)


@pytest.mark.parametrize("codec", fe.codecs())
def test_a_batch_of_empty_bags_is_served(codec: str) -> None:
    frozen = fe.embedding(BAGGED, "full", dim=4).freeze(codec)
    assert torch.equal(frozen(NO_IDS), torch.zeros(3, 8))


def test_two_tables_of_one_layer_start_from_different_numbers() -> None:
    def make() -> list[torch.Tensor]:
        context = fe.layer.BuildContext(BAGGED, 4, 7, torch.device("cpu"))
        return [context.table(9, 4, 0.1).weight for _ in range(3)]

    one, two, three = make()
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    assert all(map(torch.equal, make(), (one, two, three)))


def test_a_table_beyond_all_memory_is_a_setting_error() -> None:
    schema = fe.Schema([fe.Feature("a", 5)])
    with pytest.raises(fe.ConfigError, match="2\\^61 bytes"):
        fe.embedding(schema, "unified(rows=99999999999999999999)", device="meta")


@pytest.mark.parametrize("kind", [optim.RowAdam, optim.RowAdagrad, optim.DenseAdam])
def test_rows_move_with_their_optimizer_state(kind: type[torch.optim.Optimizer]) -> None:
    table = RowTable(6, 4, 0.1, torch.Generator().manual_seed(0))
    optimizer = kind(table.parameters(), lr=0.1)
    table(torch.tensor([0, 1, 1])).square().sum().backward()
    optimizer.step()
    states = [s for s in optimizer.state[table.weight].values() if s.dim() > 0]
    before = [tensor.clone() for tensor in (table.weight.detach(), *states)]
    copy_rows(table.weight, torch.tensor([0, 1, 5]), torch.tensor([5, 0, 4]))
    for tensor, old in zip((table.weight.detach(), *states), before, strict=True):
        assert torch.equal(tensor, old[[1, 1, 2, 3, 5, 0]])
    reset_rows(table.weight, torch.tensor([1]), torch.ones(1, 4))
    assert torch.equal(table.weight[1], torch.ones(4))
    assert all(bool((s[1] == 0).all()) for s in states)


def test_rows_move_without_an_optimizer() -> None:
    table = RowTable(3, 2, 0.1, torch.Generator().manual_seed(0))
    old = table.weight.detach().clone()
    copy_rows(table.weight, torch.tensor([2]), torch.tensor([0]))
    assert torch.equal(table.weight.detach(), old[[2, 1, 2]])
