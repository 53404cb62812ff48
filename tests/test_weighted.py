"""Codecs that weigh rows by how often they are read: where the counts go, and what they change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb.codecs import weighted
from featemb.codecs.floats import Fp32
from featemb.codecs.pq import PQ
from featemb.codecs.rq import RQ
from featemb.codecs.weighted import CountingCodec, Weighted, row_counts
from featemb.frequency import expected_counts
from featemb.parts.base import Part


@dataclass(frozen=True, kw_only=True)
class Spy(CountingCodec):
    """Notes the weights that it is given with each table, and stores fp32."""

    name = "spy"
    seen: list = field(default_factory=list)

    def weighed(self, table: Tensor, weights: Tensor | None) -> Part:
        if not table.is_meta:
            self.seen.append((table.detach().clone(), weights))
        return Fp32().encode(table)


def skewed(n: int, seed: int = 0) -> Any:
    counts = (1e4 / np.arange(1, n + 1) ** 1.2).astype(np.int64) + 1
    return np.random.default_rng(seed).permutation(counts)


SIZES = {"a": 300, "b": 80, "c": 5}
SCHEMA = fe.Schema([fe.Feature(name, n, counts=skewed(n, n)) for name, n in SIZES.items()])
PLAIN = fe.Schema([fe.Feature(name, n) for name, n in SIZES.items()])


def spied(spec: str, schema: fe.Schema = SCHEMA, dim: int = 4) -> tuple[Any, list[Any]]:
    layer, spy = fe.embedding(schema, spec, dim=dim), Spy()
    layer.freeze(spy)
    return layer, spy.seen


def brute(address: Any, rows: int, schema: fe.Schema = SCHEMA) -> list[float]:
    """Counts of the rows, an id at a time."""
    total = [0.0] * rows
    counts = expected_counts(schema).tolist()
    place = 0
    for feature, n in enumerate(schema.cardinalities):
        for value in range(n):
            for row in address(torch.tensor([value]), torch.tensor(feature)).view(-1).tolist():
                total[row] += counts[place]
            place += 1
    return total


@pytest.mark.parametrize(
    "spec", ["full", "hash(rows=40)", "unified(lookups=2, rows=60)", "qr", "adapt(rows=50)"]
)
def test_rows_count_for_all_ids_that_read_them(spec: str) -> None:
    layer, seen = spied(spec)
    ((table, weights),) = seen
    assert weights.tolist() == pytest.approx(brute(layer.source.address, len(table)))


def test_full_tables_have_the_ids_own_counts() -> None:
    _, ((_, weights),) = spied("full")
    assert weights.tolist() == expected_counts(SCHEMA).tolist()
    _, ((_, assumed),) = spied("full", PLAIN)
    assert assumed.tolist() == expected_counts(PLAIN).tolist()


def test_features_of_a_split_have_their_own_counts() -> None:
    layer, seen = spied("mde(limit=2500)")
    counts = torch.from_numpy(expected_counts(SCHEMA)).split(list(SIZES.values()))
    split = next(one for one in layer.modules() if type(one).__name__ == "Split")
    assert len(set(split.which)) > 1
    wanted = [
        torch.cat([own for own, one in zip(counts, split.which, strict=True) if one == number])
        for number in range(len(split.sources))
    ]
    given = [weights for _, weights in seen if weights is not None]
    assert [one.tolist() for one in given] == [one.tolist() for one in wanted]


def test_kept_rows_have_their_own_counts() -> None:
    layer, ((table, weights),) = spied("magnitude(unit=rows, kept=100)")
    kept = layer.chosen()[:, 0]
    assert torch.equal(table, layer.weight.detach()[kept])
    assert weights.tolist() == expected_counts(SCHEMA)[kept.numpy()].tolist()
    layer, ((table, weights),) = spied("magnitude(kept=200)")
    rows = layer.chosen().nonzero()[:, 0]
    assert weights.tolist() == expected_counts(SCHEMA)[rows.numpy()].tolist()


def test_owned_rows_have_their_owners_counts() -> None:
    layer, ((_, weights),) = spied("adaembed(kept=60)")
    pointers = layer.source.rows.pointers
    owners = (pointers >= 0).nonzero()[:, 0]
    assert weights.tolist() == expected_counts(SCHEMA)[owners.numpy()].tolist()


def test_unbounded_features_have_no_weights() -> None:
    schema = fe.Schema([fe.Feature("a"), fe.Feature("b", 5)])
    _, ((_, weights),) = spied("hash(rows=40)", schema)
    assert weights is None


def test_tables_without_an_address_have_no_weights() -> None:
    _, seen = spied("full", fe.Schema([fe.Feature("a", 30)]))
    assert seen[0][1] is not None
    spy = Spy()
    spy.counted(SCHEMA).encode(torch.ones(385, 2))
    assert spy.seen[0][1] is None


def test_weights_that_do_not_fit_are_not_used() -> None:
    spy = Spy()
    codec = spy.counted(SCHEMA).at(fe.parts.OffsetAddress.of(SCHEMA.cardinalities))
    for rows in (384, 385, 387):
        codec.encode(torch.ones(rows, 2))
    few, exact, more = (weights for _, weights in spy.seen)
    assert few is None
    assert len(exact) == 385
    assert more.tolist() == [*exact.tolist(), 0.0, 0.0]


def test_an_address_on_an_address() -> None:
    """A method that stores another's rows: the rows' counts are those of its one feature's ids."""
    spy = Spy()
    first = fe.embedding(SCHEMA, "hash(rows=40)", dim=4).source.address
    rows = fe.Schema([fe.Feature("rows", 40)])
    second = fe.embedding(rows, "hash(rows=11)", dim=4).source.address
    spy.counted(SCHEMA).at(first).at(second).encode(torch.ones(11, 2))
    middle, wanted = brute(first, 40), [0.0] * 11
    for row, count in enumerate(middle):
        wanted[int(second(torch.tensor([row]), torch.tensor(0)))] += count
    assert spy.seen[0][1].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("inner", ["lowdim(width=3)", "magnitude(unit=rows, kept=30)"])
def test_stored_rows_have_the_counts_of_those_who_read_them(inner: str) -> None:
    layer, ((table, weights),) = spied(f"hash(rows=40)+{inner}")
    wanted = torch.tensor(brute(layer.source.address, 40), dtype=torch.float64)
    if len(table) == 30:
        wanted = wanted[layer.stored()[0].chosen()[:, 0]]
    assert weights.tolist() == pytest.approx(wanted.tolist())


def test_nothing_is_counted_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(schema: fe.Schema) -> None:
        raise AssertionError("counts were asked for")

    layer = fe.embedding(SCHEMA, "hash+pq(bits=3)", dim=4, ratio=10)
    monkeypatch.setattr(weighted, "expected_counts", refuse)
    assert layer.memory().serving <= SCHEMA.full_bytes(4) / 10
    fe.embedding(SCHEMA, "magnitude+pq(bits=3)", dim=4, ratio=10, device="meta").memory()
    with pytest.raises(AssertionError, match="were asked for"):
        layer.freeze()


def test_other_codecs_take_no_counts() -> None:
    codec = Fp32()
    assert codec.counted(SCHEMA) is codec
    assert codec.only([True]) is codec
    assert codec.rows(torch.arange(3)) is codec
    assert isinstance(PQ().counted(SCHEMA), Weighted)
    assert "weighted" not in fe.codecs()


@pytest.mark.parametrize("codec", [PQ(parts=2, bits=4), RQ(stages=2, bits=4)])
def test_frequent_rows_are_nearer_with_weights(codec: CountingCodec) -> None:
    generator = torch.Generator().manual_seed(0)
    table, counts = torch.randn(2000, 8, generator=generator), torch.from_numpy(skewed(2000))
    rows = torch.arange(2000)

    def error(part: Part) -> float:
        return float(((part(rows) - table).square().sum(1) * counts).sum() / counts.sum())

    assert error(codec.weighed(table, counts)) < 0.8 * error(codec.encode(table))


def test_frozen_layers_use_the_counts() -> None:
    layer = fe.embedding(SCHEMA, "full+pq(parts=2, bits=4)", dim=8)
    table, counts = layer.source.rows.weight.detach(), torch.from_numpy(expected_counts(SCHEMA))
    rows = torch.arange(385)

    def error(frozen: fe.FrozenEmbedding) -> float:
        return float(((frozen.source.rows(rows) - table).square().sum(1) * counts).sum())

    plain = PQ(parts=2, bits=4).encode(table)
    frozen = layer.freeze()
    assert error(frozen) < 0.8 * float(((plain(rows) - table).square().sum(1) * counts).sum())
    assert error(layer.freeze()) == error(frozen)  # a function of table and counts


def test_equal_weights_change_nothing() -> None:
    table = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    for codec in (PQ(parts=2, bits=4), RQ(stages=2, bits=4)):
        plain, equal = codec.encode(table), codec.weighed(table, torch.full((500,), 7.0))
        for name, value in plain.state_dict().items():
            assert torch.equal(value, equal.state_dict()[name])


def test_row_counts_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    address = fe.embedding(SCHEMA, "unified(lookups=2, rows=60)", dim=4).source.address
    counts = list(torch.from_numpy(expected_counts(SCHEMA)).split(list(SIZES.values())))
    whole = row_counts(counts, address)
    monkeypatch.setattr(weighted, "_BLOCK", 7)
    assert torch.allclose(row_counts(counts, address), whole)
