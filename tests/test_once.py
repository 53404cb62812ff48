"""Layers whose vectors are computed look each distinct id up once: the same answers, less work."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb import once
from featemb.frozen import FrozenEmbedding
from featemb.parts import Split
from featemb.parts.deep_hash import HashEncoder
from featemb.parts.tensor_train import TensorTrain

SCHEMA = fe.Schema([fe.Feature("a", 40), fe.Feature("b", 7), fe.Feature("c", 300)])
SPECS = (
    *("dpq(codewords=8, parts=2)", "mgqe", "mpe", "magnitude", "magnitude(unit=rows)", "pep"),
    *("deeplight", "autosrh", "mec", "cce", "dhe(width=8, hashes=16)", "full+pq", "full+rq"),
)


def frozen(spec: str) -> FrozenEmbedding:
    layer = fe.embedding(SCHEMA, spec, dim=8, seed=3)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return layer.eval().freeze()


def batch(rows: int = 300) -> Tensor:
    sizes = torch.tensor(SCHEMA.cardinalities)
    drawn = torch.rand(rows, 3, generator=torch.Generator().manual_seed(1)) ** 3
    return (drawn * sizes).long()


@pytest.mark.parametrize("spec", SPECS)
def test_answers_are_those_of_every_id(spec: str) -> None:
    layer, ids = frozen(spec), batch()
    with mock.patch("featemb.once.applies", return_value=False):
        every = layer(ids)
        pairs = layer.lookup(ids.t().reshape(-1), torch.arange(3).repeat_interleave(300))
    exact = not any(isinstance(part, HashEncoder) for part in layer.modules())
    apart = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(layer(ids), every, **apart)  # type: ignore[arg-type]
    again = layer.lookup(ids.t().reshape(-1), torch.arange(3).repeat_interleave(300))
    torch.testing.assert_close(again, pairs, **apart)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["magnitude", "dpq(codewords=8, parts=2)"])
def test_a_distinct_id_is_asked_for_once(spec: str) -> None:
    layer, ids = frozen(spec), batch()
    seen: list[Tensor] = []
    source = layer.source
    source.register_forward_pre_hook(
        lambda _, inputs: seen.append(
            torch.stack([inputs[1] + torch.zeros_like(inputs[0]), inputs[0]])
        )
    )
    layer(ids)
    (asked,) = seen
    distinct = sum(len(set(column.tolist())) for column in ids.unbind(1))
    assert asked.shape[1] == distinct < ids.numel()
    assert len(set(zip(*asked.tolist(), strict=True))) == distinct


def test_a_plain_table_reads_every_id() -> None:
    assert not once.needed(frozen("full").source)
    assert not once.needed(frozen("hash(rows=20)").source)
    assert once.computes(frozen("dhe(width=8, hashes=16)").source)
    assert not once.needed(frozen("dhe(width=8, hashes=16)").source), "it does so itself"


def test_unbounded_features_are_computed_as_they_stand() -> None:
    schema = fe.Schema([fe.Feature("any")])
    layer = fe.embedding(schema, "dhe(width=8, hashes=16)", dim=8).eval()
    ids = torch.tensor([[2**62], [5], [2**62]])
    source = layer.freeze().source
    found = once.look_up(source, ids, torch.zeros(1, dtype=torch.int64), schema)
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[:, 0], layer(ids))


def test_bags_are_looked_up_once_too() -> None:
    schema = fe.Schema([fe.Feature("a", 40), fe.Feature("tags", 30, multi=True, pooling="mean")])
    layer = fe.embedding(schema, "magnitude", dim=8).eval().freeze()
    ids = fe.Jagged(torch.tensor([3, 3, 9, 4, 4, 4, 7]), torch.tensor([1, 1, 1, 2, 0, 2]))
    with mock.patch("featemb.once.applies", return_value=False):
        every = layer(ids)
    assert torch.equal(layer(ids), every)


def test_deep_hash_does_so_out_of_training_too() -> None:
    layer, ids = frozen("dhe(width=8, hashes=16)"), batch()
    (encoder,) = (part for part in layer.modules() if isinstance(part, HashEncoder))
    made: list[int] = []
    plain = encoder.codes

    def codes(ids: Tensor, where: slice) -> Tensor:
        made.append(ids.numel())
        return plain(ids, where)

    with mock.patch.object(encoder, "codes", codes):
        layer(ids)
    assert isinstance(layer.source, Split)
    own = [column for column, one in zip(ids.unbind(1), layer.source.which, strict=True) if not one]
    assert made == [len(own) * max(len(set(column.tolist())) for column in own)]
    assert made[0] < len(own) * len(ids)


def test_few_ids_of_deep_hash_have_the_bits_of_a_trace() -> None:
    layer, ids = frozen("dhe(width=8, hashes=16)"), batch(30)
    with mock.patch("featemb.once.applies", return_value=False):
        every = layer(ids)
    assert torch.equal(layer(ids), every)


@pytest.mark.parametrize("factors", [2, 3])
def test_shared_slices_of_a_tensor_train_give_the_same(factors: int) -> None:
    schema = fe.Schema([fe.Feature("a", 9000), fe.Feature("b", 7)])
    layer = fe.embedding(schema, f"tt(cores={factors}, rank=3)", dim=8, seed=3).eval().freeze()
    ids = torch.stack([torch.arange(9000), torch.arange(9000) % 7], 1)
    few = torch.cat([layer(ids[first : first + 100]) for first in range(0, 9000, 100)])
    with mock.patch.object(
        TensorTrain, "_tiled", autospec=True, side_effect=TensorTrain._tiled
    ) as tiled:
        torch.testing.assert_close(layer(ids), few, rtol=1e-5, atol=1e-6)
    assert tiled.call_count == 3
