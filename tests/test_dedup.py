"""`dedup`: its formula one id at a time, which blocks are merged, and both forms of the layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import featemb as fe
from featemb.check.case import SINGLE, LinearReader, mean_loss, task
from featemb.fit import fit
from featemb.merging import merge
from featemb.stage import Stage

SCHEMA = fe.Schema([fe.Feature("a", 301), fe.Feature("b", 42), fe.Feature("c", 3)])
IDS = torch.stack([torch.arange(301) % n for n in SCHEMA.cardinalities], dim=1)
MERGE = Stage("merge")


def made(spec: str, seed: int = 0, schema: fe.Schema = SCHEMA) -> fe.FeatureEmbedding:
    return fe.embedding(schema, spec, dim=4, seed=seed)


def plain_map(layer: fe.FeatureEmbedding, count: int, bits: int) -> list[int]:
    words = [int(word) & 0xFFFFFFFF for word in layer.source.address.pointers.words]
    read = [
        [words[b // 32] >> b % 32 & 1 for b in range(i * bits, (i + 1) * bits)]
        for i in range(count)
    ]
    return [sum(bit << place for place, bit in enumerate(one)) for one in read]


@pytest.mark.parametrize("block", [1, 3, 4])
def test_it_is_its_formula(block: int) -> None:
    layer = made(f"dedup(blocks=20, block={block})")
    before = layer(IDS).view(-1, 3, 4)
    full = layer.source.rows.weight.detach().clone()
    layer.begin_stage(MERGE)
    out, table = layer(IDS).view(-1, 3, 4), layer.source.rows.weight
    assert tuple(table.shape) == (20 * block, 4)
    firsts = np.cumsum([0, *(-(-n // block) for n in SCHEMA.cardinalities)]).tolist()
    pointers = plain_map(layer, firsts[-1], 5)
    assert sorted(set(pointers)) == list(range(20))
    for f, n in enumerate(SCHEMA.cardinalities):
        for value in range(n):
            row = pointers[firsts[f] + value // block] * block + value % block
            assert torch.equal(out[value, f], table[row])
    # every stored row is one that some id had, or a zero that fills up a last block
    had = {tuple(row) for row in full.tolist()} | {(0.0,) * 4}
    assert {tuple(row) for row in table.tolist()} <= had
    assert not torch.equal(before, out)


def plant(layer: fe.FeatureEmbedding, distinct: int) -> int:
    """Make the blocks of 4 rows repeat: so many distinct ones in feature a, and one of b."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(distinct, 4, 4, generator=generator)
    kinds[:, 1:] += 0.5
    with torch.no_grad():
        weight = layer.source.rows.weight
        weight[:300] = kinds[torch.arange(75) % distinct].view(300, 4)
        weight[301:341] = kinds[0].repeat(10, 1)
    return distinct + 3  # and the last, short blocks of the three features


def test_duplicates_are_merged_first_at_no_loss() -> None:
    layer = made("dedup(blocks=10)")
    assert plant(layer, 7) == 10
    before = layer(IDS)
    assert torch.equal(layer.freeze()(IDS), before)
    layer.begin_stage(MERGE)
    assert torch.equal(layer(IDS), before)


def test_one_less_than_the_distinct_blocks_loses_something() -> None:
    layer = made("dedup(blocks=9)")
    plant(layer, 7)
    before = layer(IDS)
    layer.begin_stage(MERGE)
    assert not torch.equal(layer(IDS), before)


@pytest.mark.parametrize("target", [1, 2, 17, 199, 200, 300])
def test_exactly_the_target_is_left(target: int) -> None:
    vectors = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    leader = merge(vectors, torch.zeros(200, dtype=torch.int64), target)
    assert len(leader.unique()) == min(target, 200)
    assert torch.equal(leader[leader], leader)
    again = merge(vectors, torch.zeros(200, dtype=torch.int64), target)
    assert torch.equal(leader, again)


def test_all_equal_vectors_and_zeros() -> None:
    counts = torch.tensor([1, 5, 5, 2])
    for vectors in (torch.ones(4, 3), torch.zeros(4, 3), torch.tensor([[0.0], [-0.0]] * 2)):
        assert merge(vectors, counts, 1).tolist() == [1, 1, 1, 1]  # largest count, lowest number
        assert len(merge(vectors, counts, 3).unique()) == 3


def test_the_larger_count_leads() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 1e-4], [5.0, 5.0], [5.0, 5.0001], [-9.0, 0.0]])
    assert merge(vectors, torch.tensor([1, 9, 4, 4, 0]), 3).tolist() == [1, 1, 2, 2, 4]


def test_near_clusters_are_found() -> None:
    generator = torch.Generator().manual_seed(2)
    centers = torch.randn(12, 16, generator=generator)
    kind = torch.randint(0, 12, (900,), generator=generator)
    vectors = centers[kind] + 1e-3 * torch.randn(900, 16, generator=generator)
    leader = merge(vectors, torch.zeros(900, dtype=torch.int64), 12)
    assert torch.equal(kind[leader], kind)
    assert float((vectors - vectors[leader]).norm(dim=1).max()) < 0.02


@pytest.mark.parametrize("target", [600, 200, 20])
def test_it_is_better_than_random_merging(target: int) -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.rand(1000, 1, generator=generator) ** 3
    vectors = torch.randn(1000, 16, generator=generator) * scale
    leader = merge(vectors, torch.ones(1000, dtype=torch.int64), target)
    order = torch.randperm(1000, generator=generator)
    random = torch.empty(1000, dtype=torch.int64)
    random[order] = order[torch.arange(1000) % target]
    error, other = ((vectors - vectors[one]).square().sum() for one in (leader, random))
    assert float(error) < 0.6 * float(other)


def test_counts_of_blocks_choose_the_values_that_stay() -> None:
    counts = np.zeros(8, np.int64)
    counts[6] = 3
    schema = fe.Schema([fe.Feature("a", 8, counts=counts)])
    layer = made("dedup(blocks=1)", schema=schema)
    full = layer.source.rows.weight.detach().clone()
    layer.begin_stage(MERGE)
    ids = torch.arange(8)[:, None]
    # ids 0 to 3 were never seen: they read the rows of the block that was
    assert torch.equal(layer(ids), full[4:].repeat(2, 1))


def test_similarity_refuses_what_is_not_alike() -> None:
    layer = made("dedup(blocks=5, similarity=0.9)")
    need = plant(layer, 7)
    with pytest.raises(fe.BudgetError) as caught:
        layer.begin_stage(MERGE)
    # the short blocks of zeros and three tiny rows may be alike
    floor = caught.value.floor
    reached = fe.embedding(SCHEMA, "dedup(similarity=0.9)", dim=4, budget=floor)
    plant(reached, 7)
    reached.begin_stage(MERGE)
    assert reached.memory().serving == floor
    assert 5 < reached.config.blocks <= need


def test_similar_blocks_are_alike() -> None:
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(30, 20, generator=generator).repeat(10, 1)
    vectors += 0.05 * torch.randn(300, 20, generator=generator)
    leader = merge(vectors, torch.zeros(300, dtype=torch.int64), 1, similarity=0.8)
    assert 30 <= len(leader.unique()) < 60
    tolerance = float(vectors.std(correction=0)) / 4
    for one in range(300):
        apart = (vectors[one] - vectors[leader[one]]).abs()
        assert float((apart <= tolerance).float().mean()) >= 0.8


def test_memory_of_both_forms() -> None:
    layer = made("dedup(blocks=20)")
    blocks = 76 + 11 + 1
    serving = {"rows": 20 * 4 * 4 * 4, "pointers": 4 * -(-blocks * 5 // 32)}
    assert layer.memory().parts == serving
    assert layer.memory().training == 346 * 4 * 4
    layer.begin_stage(MERGE)
    assert layer.memory().parts == serving
    assert layer.memory().training == sum(serving.values())


def test_the_default_and_the_floor() -> None:
    layer = made("dedup")
    assert layer.freeze().source.rows.weight.shape[0] == 8 * 4  # a tenth of 88 blocks
    smallest = fe.embedding(SCHEMA, "dedup", dim=4, budget=64, device="meta")
    assert smallest.memory().serving == 64
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(SCHEMA, "dedup", dim=4, budget=63, device="meta")
    assert caught.value.floor == 64
    one = made("dedup(blocks=1)")
    one.begin_stage(MERGE)
    vectors = one(IDS).view(-1, 3, 4)
    assert len(torch.unique(vectors.reshape(-1, 4), dim=0)) <= 4


def test_state_dicts_of_both_forms_load_into_both() -> None:
    full, merged = made("dedup(blocks=20)", seed=1), made("dedup(blocks=20)", seed=2)
    merged.begin_stage(MERGE)
    for source in (full, merged):
        for unfinished in (True, False):
            target = made("dedup(blocks=20)", seed=3)
            if not unfinished:
                target.begin_stage(MERGE)
            model, other = LinearReader(target), LinearReader(source)
            model.load_state_dict(copy.deepcopy(other.state_dict()))
            assert model.layer.merged == source.merged
            assert torch.equal(model(IDS), other(IDS))
            assert torch.equal(target.freeze()(IDS), source.freeze()(IDS))


def test_training_goes_on_after_the_merge() -> None:
    layer = fe.embedding(SINGLE, "dedup(blocks=16, block=2)", dim=8)
    model, data = LinearReader(layer), task()
    scores = []

    def score() -> float:
        scores.append(-mean_loss(model, data))
        return scores[-1]

    history = fit(model, lambda epoch: data, score, epochs=4, lr=0.03)
    stages = [record["stage"] for record in history.records]
    assert set(stages) == {"train", "merge"}
    assert layer.merged
    assert layer.source.rows.weight.shape == (32, 8)
    merged = [record["score"] for record in history.records if record["stage"] == "merge"]
    assert history.best_score == max(merged) == -mean_loss(model, data)


def test_errors_and_companions() -> None:
    for text, part in (
        ("dedup(blocks=0)", "blocks must be at least 1"),
        ("dedup(block=0)", "block must be at least 1"),
        ("dedup(similarity=1.5)", "similarity must be between 0 and 1"),
    ):
        with pytest.raises(fe.ConfigError, match=part):
            made(text)
    assert made("dedup").companion(1).config.name == "hash"
    layer = made("dedup")
    with torch.no_grad():
        layer.source.rows.weight[5] = float("nan")
    with pytest.raises(fe.FeatembError, match="row 5"):
        layer.begin_stage(MERGE)
