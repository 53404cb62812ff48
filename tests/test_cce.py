"""`cce`: its formula one id at a time, packed pointers, and what a clustering does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_hash import plain_bucket, plain_mix, plain_salts

import featemb as fe
from featemb.check.case import LinearReader, task
from featemb.clustering import k_means, nearest
from featemb.config import find
from featemb.fit import fit
from featemb.methods.cce import share
from featemb.parts.packed import PackedInts

SCHEMA = fe.Schema([fe.Feature("a", 300), fe.Feature("b", 40), fe.Feature("c", 3)])
SPEC = "cce(rows=110, chunks=2)"
MASK = (1 << 64) - 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_packed_integers_read_back(data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.integers(0, 31), min_size=1, max_size=4))
    counts = [data.draw(st.integers(1, 130)) for _ in bits]
    packed = PackedInts.empty(counts, bits, "cpu")
    wanted = []
    for group, (count, width) in enumerate(zip(counts, bits, strict=True)):
        values = torch.from_numpy(np.random.default_rng(group).integers(0, 2**width, count))
        values[-1] = 2**width - 1
        wanted.append(values)
        for first in (0, 64):  # the second write overwrites its part only
            packed.write(values[first:], group, first)
    assert packed.words.numel() == sum(-(-n * b // 32) for n, b in zip(counts, bits, strict=True))
    for group, values in enumerate(wanted):
        read = packed(torch.arange(len(values)), torch.tensor(group))
        assert torch.equal(read, values)
    plain = np.unpackbits(packed.words.numpy().view(np.uint8), bitorder="little")
    start, width = packed.starts[-1] * 32 + bits[-1] * (counts[-1] - 1), bits[-1]
    assert plain[start : start + width].all(), "the last integer is not where it is said to be"


def test_packed_integers_are_written_by_words() -> None:
    packed = PackedInts.empty([64], [5], "cpu")
    with pytest.raises(ValueError, match="multiple of 32"):
        packed.write(torch.ones(3, dtype=torch.int64), 0, 3)
    with pytest.raises(ValueError, match="bits must be"):
        PackedInts.empty([64], [32], "cpu")


def made(spec: str = SPEC, seed: int = 7, schema: fe.Schema = SCHEMA) -> fe.FeatureEmbedding:
    return fe.embedding(schema, spec, dim=8, seed=seed)


def plain_vector(layer: fe.FeatureEmbedding, feature: int, value: int) -> torch.Tensor:
    """The formula for one id of a feature that the right source serves, by the plain integers."""
    lookup = layer.source.sources[1]
    address, table = lookup.address, lookup.rows.weight
    chunks, features = address.chunks, len(address.sizes)
    size, clustered = address.sizes[feature], address.second[feature] > 0
    salt = plain_salts(int(address.seed), 2 * features * chunks)
    width = (size - 1).bit_length()
    words = [int(word) & 0xFFFFFFFF for word in address.pointers.words]
    parts = []
    for i in range(chunks):
        salts = [salt[(feature * 2 + table) * chunks + i] for table in (0, 1)]
        if clustered:
            salts[1] = plain_mix(salts[1] + int(address.round))
            first = (value * chunks + i) * width
            start = address.pointers.starts[feature]
            bits = [words[start + b // 32] >> b % 32 & 1 for b in range(first, first + width)]
            left = sum(bit << number for number, bit in enumerate(bits))
        else:
            left = plain_bucket(value, salts[0], size)
        right = address.second[feature] + plain_bucket(value, salts[1], size)
        rows = [address.offsets[feature] + row * chunks + i for row in (left, right)]
        parts.append(table[rows[0]] + table[rows[1]])
    return torch.cat(parts)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("spec", [SPEC, "cce(rows=60, chunks=4, pointer_share=0.3)"])
def test_it_is_its_formula(spec: str, clustered: bool) -> None:
    layer = made(spec)
    if clustered:
        layer.cluster()
    assert layer.source.which == (True, True, False)
    ids = torch.stack([torch.arange(60) * 5 % n for n in SCHEMA.cardinalities], dim=1)
    out = layer(ids).view(-1, 3, 8)
    own = layer.source.sources[0].rows.weight
    for b, (first, second, third) in enumerate(ids.tolist()):
        for f, value in ((0, first), (1, second)):
            assert torch.allclose(out[b, f], plain_vector(layer, f, value), atol=1e-6)
        assert torch.equal(out[b, 2], own[third])


def test_pointers_begin_as_a_hash() -> None:
    layer = made()
    address = layer.source.sources[1].address
    salt = plain_salts(7, 2 * 2 * 2)
    read = address.pointers(torch.arange(600), torch.tensor(0)).view(300, 2)
    for value in range(300):
        for i in range(2):
            assert int(read[value, i]) == plain_bucket(value, salt[i], address.sizes[0])


def chunks_of(layer: fe.FeatureEmbedding, feature: int, count: int) -> torch.Tensor:
    ids = torch.arange(count)
    vectors = layer.lookup(ids, torch.full_like(ids, feature))
    return vectors.detach().view(count, layer.source.sources[1].address.chunks, -1)


def test_a_clustering_one_id_at_a_time() -> None:
    layer = made()
    address, table = layer.source.sources[1].address, layer.source.sources[1].rows.weight.detach()
    before = chunks_of(layer, 0, 300)
    layer.cluster()
    assert int(address.round) == 1
    size = address.sizes[0]
    tables = table[: 2 * size * 2].view(2, size, 2, 4)
    read = address.pointers(torch.arange(600), torch.tensor(0)).view(300, 2)
    salt = plain_salts(7, 2 * 2 * 2)
    alone = together = 0.0
    for i in range(2):
        buckets: dict[int, list[torch.Tensor]] = {}
        for value in range(300):
            distance = (tables[0, :, i] - before[value, i]).square().sum(1)
            pointer = int(read[value, i])
            assert float(distance[pointer]) <= float(distance.min()) + 1e-9
            rest = before[value, i] - tables[0, pointer, i]
            home = plain_bucket(value, plain_mix(salt[2 + i] + 1), size)
            buckets.setdefault(home, []).append(rest)
            alone += float(rest.square().sum())
        for row in range(size):
            members = buckets.get(row)
            mean = torch.stack(members).mean(0) if members else torch.zeros(4)
            assert torch.allclose(tables[1, row, i], mean, atol=1e-6)
    after = chunks_of(layer, 0, 300)
    together = float((after - before).square().sum())
    assert together <= alone + 1e-6
    spread = float((before - before.mean(0)).square().sum())
    assert together < 0.7 * spread
    assert bool(torch.isfinite(table).all())


def test_a_clustering_finds_planted_clusters() -> None:
    layer = made("cce(rows=110, chunks=1)")
    lookup = layer.source.sources[1]
    with torch.no_grad():  # 5 distinct vectors, fewer than centroids: no error is left
        size = lookup.address.sizes[0]
        assert size > 5
        lookup.rows.weight[: 2 * size] = 0
        lookup.rows.weight[:5] = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
        lookup.address.pointers.write(torch.arange(300) % 5, 0)
    before = chunks_of(layer, 0, 300)
    layer.cluster()
    assert torch.allclose(chunks_of(layer, 0, 300), before, atol=1e-6)
    assert bool(torch.isfinite(lookup.rows.weight).all())


@pytest.mark.parametrize("width", [2, 11])
def test_nearest_and_k_means(width: int) -> None:
    random = np.random.default_rng(0)
    centers = random.normal(size=(6, width)).astype(np.float32) * 10
    points = centers[np.arange(400) % 6] + random.normal(size=(400, width)).astype(np.float32) / 10
    own = nearest(points, centers)
    brute = np.square(points[:, None] - centers).sum(-1).argmin(1)
    assert (own == brute).all()
    ones = np.ones(400, np.float32)
    found = k_means(points, 12, random, ones)
    error = np.square(points - found[nearest(points, found)]).sum()
    assert error < np.square(points - points[:1]).sum() / 100
    same = k_means(np.ones((9, width), np.float32), 4, random, ones[:9])
    assert np.isfinite(same).all()
    rare = np.where(np.arange(400) % 6 == 0, 1.0, 0.0).astype(np.float32)  # others weigh nothing
    found = k_means(points, 1, random, rare)
    assert np.allclose(found[0], points[::6].mean(0), atol=2e-2)


def test_training_counts_weigh_and_unseen_ids_follow() -> None:
    counts = np.zeros(300, np.int64)
    counts[:40] = 1
    schema = fe.Schema([fe.Feature("a", 300, counts=counts), *SCHEMA.features[1:]])
    layer = made("cce(rows=230, chunks=1)", schema=schema)
    assert layer.source.sources[1].address.sizes[0] > 40
    before = chunks_of(layer, 0, 300)[:, 0]
    layer.cluster()
    table = layer.source.sources[1].rows.weight.detach()[: layer.source.sources[1].address.sizes[0]]
    read = layer.source.sources[1].address.pointers(torch.arange(300), torch.tensor(0))
    assert torch.allclose(table[read[:40]], before[:40], atol=1e-6), "trained ids own centroids"
    # ids that training never saw belong to the cluster nearest to the vector that they had
    distance = (table[None] - before[40:, None]).square().sum(-1)
    own = distance.gather(1, read[40:, None])[:, 0]
    assert torch.allclose(own, distance.amin(1), atol=1e-8)


def test_stages_and_repeats() -> None:
    layer = made("cce(rows=110, clusterings=3)")
    stages = layer.stages()
    assert [one.name for one in stages] == ["cluster 1", "cluster 2", "cluster 3", "train"]
    assert [one.epochs for one in stages] == [1, 1, 1, None]
    for stage in stages:
        layer.begin_stage(stage)
    assert int(layer.source.sources[1].address.round) == 3
    again = made("cce(rows=110, clusterings=3)")
    for stage in stages:
        again.begin_stage(stage)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert torch.equal(layer(ids), again(ids))
    assert [one.name for one in made("cce(rows=110, clusterings=0)").stages()] == ["train"]
    assert [one.name for one in made("cce(rows=343)").stages()] == ["train"]  # all whole
    assert [one.name for one in made("cce(rows=20, pointer_share=0.05)").stages()] == ["train"]


def test_clustering_helps_a_planted_task() -> None:
    """Labels follow the parity of the id: two clusters a chunk tell all, a hash cannot."""
    losses = {}
    data = task()
    for spec in ("cce(rows=45, clusterings=2)", "cce(rows=45, clusterings=0)"):
        layer = fe.embedding(fe.check.case.SINGLE, spec, dim=8)
        model = LinearReader(layer)
        history = fit(model, lambda epoch: data, None, epochs=4, lr=0.03)
        losses[spec] = history.records[-1]["train_loss"]
    clustered, hashed = losses.values()
    assert clustered < hashed


def test_shares_grow_and_small_features_are_whole() -> None:
    limits = (1000, 50, 3)
    previous = (0.0, 0.0, 0.0)
    for rows in range(3, 1100, 7):
        now = share(limits, rows, 0.5)
        assert sum(now) <= rows + 1e-6
        assert all(a <= b for a, b in zip(previous, now, strict=True))
        previous = now
    assert previous == (1000.0, 50.0, 3.0)


def test_sizes_grow_with_rows() -> None:
    sizes = []
    for rows in range(3, 360):
        layer = fe.embedding(SCHEMA, f"cce(rows={rows})", dim=8, device="meta")
        sizes.append(layer.memory().serving)
        assert sizes[-1] <= 32 * rows + 16 + 12, "shares are of the bytes, pointers included"
    assert sizes == sorted(sizes)
    assert sizes[-1] == 343 * 32


def test_equal_features_use_the_budget() -> None:
    schema = fe.Schema([fe.Feature(f"f{number}", 10_000) for number in range(13)])
    for ratio in (3, 10, 100):
        layer = fe.embedding(schema, "cce", dim=16, ratio=ratio, device="meta")
        limit = schema.full_bytes(16) / ratio
        assert 0.98 * limit < layer.memory().serving <= limit


def test_pointers_are_counted() -> None:
    layer = made()
    address = layer.source.sources[1].address
    bits = [(size - 1).bit_length() for size in address.sizes]
    words = sum(
        -(-n * 2 * b // 32)
        for n, b, two in zip((300, 40), bits, address.second, strict=True)
        if two
    )
    assert layer.memory().parts["pointers"] == 4 * words > 0
    floor = fe.embedding(SCHEMA, "cce", dim=8, budget=3 * 32 + 16, device="meta").memory().serving
    assert floor == 3 * 32 + 16
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(SCHEMA, "cce", dim=8, budget=3 * 32, device="meta")
    assert caught.value.floor == 3 * 32 + 16


def test_errors_and_companions() -> None:
    for text, part in (
        ("cce(chunks=3)", "chunks must divide dim"),
        ("cce(chunks=0)", "chunks must be at least 1"),
        ("cce(clusterings=-1)", "clusterings must be at least 0"),
        ("cce(pointer_share=0.0)", "pointer_share must be"),
        ("cce(power=2.0)", "power must be"),
        ("cce(rows=2)", "at least 3"),
    ):
        with pytest.raises(fe.ConfigError, match=part):
            made(text)
    assert made("cce").companion(1).config.name == "hash"
    assert find("cce")(chunks=4).at_width(6).chunks == 3
