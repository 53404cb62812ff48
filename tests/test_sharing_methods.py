"""Methods that share rows between ids, against their formulas in plain Python, one id at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from plain_hash import plain_bucket, plain_mix, plain_salts

import featemb as fe
from featemb.methods.qr import balanced, largest_first

CARDS = {"a": 300, "b": 40, "c": 3}
RNG = np.random.default_rng(0)
COUNTS = {name: RNG.permutation(n) * 7 % 101 for name, n in CARDS.items()}
SORTED = {name: np.sort(counts)[::-1] for name, counts in COUNTS.items()}
SCHEMA = fe.Schema(fe.Feature(name, n, counts=COUNTS[name]) for name, n in CARDS.items())
IDS = torch.stack([torch.arange(300) * 7 % n for n in CARDS.values()], dim=1)
TRIPLES = [(b, f, x) for b, row in enumerate(IDS.tolist()) for f, x in enumerate(row)]
Vector = np.ndarray[Any, Any]


def check(layer: Any, formula: Callable[[int, int], Vector]) -> None:
    """Compare a layer's vectors with ``formula(feature, id)``."""
    out = layer(IDS).detach().numpy().reshape(len(IDS), len(CARDS), -1)
    for b, f, x in TRIPLES:
        np.testing.assert_allclose(out[b, f], formula(f, x), atol=1e-6)


def table(layer: Any, path: str = "source.rows") -> Vector:
    part = layer.get_submodule(path)
    weights: Vector = part.weight.detach().numpy()
    return weights


def hot_numbers(total: int) -> dict[tuple[int, int], int]:
    """(feature, id) -> private row of the ``total`` ids of the largest counts."""
    everything = [
        (-int(count), f, x)
        for f, counts in enumerate(COUNTS.values())
        for x, count in enumerate(counts)
    ]
    chosen = sorted((f, x) for _, f, x in sorted(everything)[:total])
    return {pair: number for number, pair in enumerate(chosen)}


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_multi_hash(combine: str) -> None:
    layer = fe.embedding(SCHEMA, f"multi_hash(rows=60, probes=3, combine={combine})", dim=4, seed=3)
    rows, address = table(layer), layer.source.address
    salt = plain_salts(3, 9)

    def formula(f: int, x: int) -> Vector:
        start, size = address.offsets[f], address.sizes[f]
        inside = [plain_bucket(x, salt[f * 3 + j], size) for j in range(3)]
        if size == list(CARDS.values())[f]:
            inside = [x] * 3
        total: Vector = sum(rows[start + one] for one in inside)
        return total / (3 if combine == "mean" else 1)

    assert sum(address.sizes) == len(rows) == 60
    check(layer, formula)


def test_multi_hash_side_by_side() -> None:
    layer = fe.embedding(SCHEMA, "multi_hash(rows=90, combine=concat)", dim=4, seed=3)
    rows, address = table(layer), layer.source.address
    assert rows.shape == (90, 2)
    salt = plain_salts(3, 6)

    def formula(f: int, x: int) -> Vector:
        start, size = address.offsets[f], address.sizes[f]
        whole = size == 2 * list(CARDS.values())[f]
        inside = [x * 2 + j if whole else plain_bucket(x, salt[f * 2 + j], size) for j in (0, 1)]
        return np.concatenate([rows[start + one] for one in inside])

    check(layer, formula)


def test_multiplexed_probes_side_by_side_are_unified_embedding() -> None:
    probes = fe.embedding(
        SCHEMA, "multi_hash(rows=90, combine=concat, multiplexed=true)", dim=4, seed=3
    )
    unified = fe.embedding(SCHEMA, "unified(rows=90, lookups=2)", dim=4, seed=3)
    assert torch.equal(probes(IDS), unified(IDS))


@pytest.mark.parametrize("share", [0.5, 10.0])
def test_multi_hash_with_importance_weights(share: float) -> None:
    spec = f"multi_hash(rows=60, weights={share}, multiplexed=true)"
    layer = fe.embedding(SCHEMA, spec, dim=4, seed=3)
    weights = layer.source.weights.rows.weight
    assert torch.all(weights == 0.5)
    torch.nn.init.uniform_(weights)
    rows, learned = table(layer, "source.vectors.rows"), table(layer, "source.weights.rows")
    salt, other = plain_salts(3, 6), plain_salts(4, 3)
    starts = (0, 300, 340)
    assert len(learned) == (30 if share < 1 else 343)

    def formula(f: int, x: int) -> Vector:
        own = plain_bucket(x, other[f], 30) if share < 1 else starts[f] + x
        probes = [rows[plain_bucket(x, salt[f * 2 + j], 60)] for j in (0, 1)]
        total: Vector = learned[own, 0] * probes[0] + learned[own, 1] * probes[1]
        return total

    check(layer, formula)


@pytest.mark.parametrize("combine", ["mean", "sum", "concat"])
@pytest.mark.parametrize("multiplexed", ["false", "true"])
def test_double_hash(combine: str, multiplexed: str) -> None:
    spec = f"double_hash(rows=80, combine={combine}, multiplexed={multiplexed})"
    layer = fe.embedding(SCHEMA, spec, dim=4, seed=5)
    rows, cold = table(layer), layer.source.address.cold
    private = 20 if combine == "concat" else 40
    hot, salt = hot_numbers(private), plain_salts(5, 6)

    def formula(f: int, x: int) -> Vector:
        first, second = (
            40 + cold.offsets[f] + plain_bucket(x, salt[f * 2 + j], cold.sizes[f]) for j in (0, 1)
        )
        if (f, x) in hot:
            number = hot[f, x]
            first, second = (
                (2 * number, 2 * number + 1) if combine == "concat" else (number, number)
            )
        if combine == "concat":
            return np.concatenate([rows[first], rows[second]])
        total: Vector = rows[first] + rows[second]
        return total / 2 if combine == "mean" else total

    check(layer, formula)


def test_adapt() -> None:
    layer = fe.embedding(SCHEMA, "adapt(rows=80, hot_share=0.25)", dim=4, seed=5)
    rows, cold = table(layer), layer.source.address.cold
    hot, salt = hot_numbers(20), plain_salts(5, 3)
    assert len(rows) == 80

    def formula(f: int, x: int) -> Vector:
        hashed = 20 + cold.offsets[f] + plain_bucket(x, salt[f], cold.sizes[f])
        return rows[hot.get((f, x), hashed)]

    check(layer, formula)


def test_frequency() -> None:
    layer = fe.embedding(SCHEMA, "frequency(rows=33)", dim=4)
    rows, hot = table(layer), hot_numbers(30)
    check(layer, lambda f, x: rows[hot.get((f, x), 30 + f)])


@pytest.mark.parametrize("method", ["frequency", "adapt", "double_hash"])
def test_ids_numbered_by_frequency_need_no_bytes_to_find_them(method: str) -> None:
    ordered = fe.Schema(fe.Feature(name, n, counts=SORTED[name]) for name, n in CARDS.items())
    assumed = fe.Schema(fe.Feature(name, n) for name, n in CARDS.items())
    remap = [12 * sum(-(-n // 64) for n in CARDS.values()), 0, 0]
    for schema, wanted in zip((SCHEMA, ordered, assumed), remap, strict=True):
        memory = fe.embedding(schema, f"{method}(rows=60)", dim=4).memory()
        assert memory.parts.get("remap", 0) == wanted


def test_memcom() -> None:
    layer = fe.embedding(SCHEMA, "memcom(rows=60, bias=true)", dim=4, seed=5)
    scale, offset = layer.source.left.right.rows.weight, layer.source.right.rows.weight
    assert torch.all(scale == 1)
    assert torch.all(offset == 0)
    for scalars in (scale, offset):
        torch.nn.init.uniform_(scalars)
    scales, shifts = scale.detach().numpy(), offset.detach().numpy()
    rows, address = table(layer, "source.left.left.rows"), layer.source.left.left.address
    salt, starts = plain_salts(5, 3), (0, 300, 340)

    def formula(f: int, x: int) -> Vector:
        inside = x if address.whole[f] else plain_bucket(x, salt[f], address.sizes[f])
        own = starts[f] + x
        vector: Vector = rows[address.offsets[f] + inside] * scales[own] + shifts[own]
        return vector

    check(layer, formula)


def test_lowdim_is_a_narrow_full_table() -> None:
    narrow = fe.embedding(SCHEMA, "lowdim(width=3)", dim=8)
    assert narrow.widths == (3, 3, 3)
    assert torch.equal(narrow(IDS), fe.embedding(SCHEMA, "full", dim=3)(IDS))
    assert fe.embedding(SCHEMA, "lowdim", dim=8, ratio=3).config.width == 2


@pytest.mark.parametrize("combine", ["multiply", "add", "concat"])
@pytest.mark.parametrize("partitions", [2, 3])
@pytest.mark.parametrize("size", ["rows=70", "collisions=7", "per_feature={a: 4, b: 1}"])
def test_qr(combine: str, partitions: int, size: str) -> None:
    spec = f"qr({size}, combine={combine}, partitions={partitions})"
    layer = fe.embedding(SCHEMA, spec, dim=6, seed=2)
    rows = table(layer)
    chosen = layer.config._radices(SCHEMA, layer.config.rows or 35 * layer.config._per_id())
    sizes = [one if len(one) > 1 else one * partitions for one in chosen]
    spread = combine == "concat"
    firsts, others = (
        0,
        sum(one[0] * (partitions if spread and len(one) == 1 else 1) for one in chosen),
    )
    starts = []
    for one in chosen:
        whole = len(one) == 1
        starts.append([firsts])
        firsts += one[0] * (partitions if spread and whole else 1)
        for radix in one[1:]:
            starts[-1].append(others)
            others += radix
    assert others == len(rows)

    def formula(f: int, x: int) -> Vector:
        radices = chosen[f]
        if len(radices) == 1:
            own = [starts[f][0] + j * radices[0] + x for j in range(partitions)]
            return np.concatenate([rows[row] for row in own]) if spread else rows[own[0]]
        assert prod(radices) >= list(CARDS.values())[f]
        digits, rest = [], x
        for radix in radices:
            digits.append(rest % radix)
            rest //= radix
        assert rest == 0
        vectors = [rows[start + digit] for start, digit in zip(starts[f], digits, strict=True)]
        if combine == "concat":
            return np.concatenate(vectors)
        return np.prod(vectors, 0) if combine == "multiply" else np.sum(vectors, 0)

    assert all(len(one) == partitions for one in sizes)
    check(layer, formula)


def test_qr_collision_numbers_are_the_papers() -> None:
    layer = fe.embedding(SCHEMA, "qr(collisions=4, per_feature={b: 10, c: 1})", dim=8)
    assert layer.config._radices(SCHEMA, 35) == [[75, 4], [4, 10], [3]]
    assert layer.memory().serving == 4 * 8 * (75 + 4 + 4 + 10 + 3)


def test_qr_never_gives_two_ids_the_same_rows() -> None:
    for n in (1, 2, 7, 64, 65, 1000, 999_983):
        for count in (2, 3, 4):
            least = balanced(n, count)
            assert prod(least) >= n
            for rows in {sum(least), n // 2 + 3, n}:
                radices = largest_first(n, max(rows, sum(least)), count)
                assert prod(radices) >= n
                assert sum(radices) <= max(rows, sum(least))


def test_balanced_digits_need_the_fewest_rows() -> None:
    for n in range(1, 400):
        fewest = min(first + -(-n // first) for first in range(1, n + 1))
        assert sum(balanced(n, 2)) == fewest
    three = min(a + b + -(-1000 // (a * b)) for a in range(1, 100) for b in range(1, 100))
    assert sum(balanced(1000, 3)) == three == 30


@pytest.mark.parametrize("n", [2**24 + 1, 2**53 + 1, 2**62])
def test_qr_divides_in_integers(n: int) -> None:
    """A quotient through floats is wrong above 2^24 (fp32) or 2^53 (fp64)."""
    from featemb.parts import DigitAddress

    address = DigitAddress(offsets=((0,), (0,)), strides=((1,), (3,)), radices=((3,), (2**62,)))
    for x in (n - 1, n - 2, n - 3):
        rows = address(torch.tensor([[x]]), torch.tensor([0]))
        assert rows.flatten().tolist() == [x % 3, x // 3]


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_multiplexed_qr(combine: str) -> None:
    layer = fe.embedding(SCHEMA, f"qr(rows=70, combine={combine}, multiplexed=true)", dim=4, seed=2)
    rows, salt = table(layer), plain_salts(2, 6)
    radices = layer.config._radices(SCHEMA, 70)
    assert len(rows) == 70

    def formula(f: int, x: int) -> Vector:
        first = radices[f][0]
        digits = (x % first, x // first if len(radices[f]) > 1 else 0)
        one, two = (rows[plain_bucket(d, salt[f * 2 + j], 70)] for j, d in enumerate(digits))
        result: Vector = one * two if combine == "multiply" else one + two
        return result

    check(layer, formula)


@pytest.mark.parametrize(
    "spec", ["qr", "qr(combine=add)", "qr(partitions=3)", "qr(multiplexed=true)"]
)
def test_products_and_sums_start_at_the_dense_tables_scale(spec: str) -> None:
    schema = fe.Schema([fe.Feature("a", 50_000), fe.Feature("b", 9_000)])
    layer = fe.embedding(schema, spec, dim=16, ratio=20)
    ids = torch.stack([torch.arange(9_000) * 5, torch.arange(9_000)], 1)
    assert float(layer(ids).detach().std()) == pytest.approx(0.05 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
@pytest.mark.parametrize("signs", ["false", "true"])
@pytest.mark.parametrize("multiplexed", ["false", "true"])
def test_robe(chunk: int, signs: str, multiplexed: str) -> None:
    spec = f"robe(blocks=40, chunk={chunk}, signs={signs}, multiplexed={multiplexed})"
    layer = fe.embedding(SCHEMA, spec, dim=6, seed=9)
    memory, source = table(layer).reshape(-1), layer.source
    blocks = 6 // chunk
    per_feature = blocks + (signs == "true")
    salt = plain_salts(9, 3 * per_feature)

    def formula(f: int, x: int) -> Vector:
        start, size = source.offsets[f] * chunk, source.sizes[f] * chunk
        numbers = []
        for c in range(blocks):
            at = plain_bucket(x, salt[f * per_feature + c], size)
            numbers += [memory[start + (at + j) % size] for j in range(chunk)]
        if signs == "true":
            bits = plain_mix(x + salt[f * per_feature + blocks])
            numbers = [-v if bits >> i & 1 else v for i, v in enumerate(numbers)]
        return np.array(numbers)

    check(layer, formula)


def test_robe_blocks_begin_anywhere_and_wrap() -> None:
    layer = fe.embedding(fe.Schema([fe.Feature("a")]), "robe(blocks=5)", dim=4)
    with torch.no_grad():
        layer.source.rows.weight.copy_(torch.arange(20.0).view(5, 4))
    out = layer(torch.arange(2000)[:, None])
    starts = out[:, 0].long()
    assert torch.equal(out, ((starts[:, None] + torch.arange(4)) % 20).float())
    assert len(starts.unique()) == 20


def test_unified_takes_sub_tables_in_turns() -> None:
    layer = fe.embedding(SCHEMA, "unified(rows=50, lookups=2, tables=3)", dim=4, seed=4)
    assert layer.source.address.sizes == (17, 17, 16)
    rows, salt, starts = table(layer), plain_salts(4, 6), (0, 17, 34)

    def formula(f: int, x: int) -> Vector:
        parts = []
        for j in (0, 1):
            number = (f * 2 + j) % 3
            size = (17, 17, 16)[number]
            parts.append(rows[starts[number] + plain_bucket(x, salt[f * 2 + j], size)])
        return np.concatenate(parts)

    check(layer, formula)
    used = layer.source.address(IDS, torch.arange(3)).flatten().bincount(minlength=50)
    thirds = [int(used[start : start + 17].sum()) for start in (0, 17, 34)]
    assert max(thirds) == min(thirds) == len(IDS) * 6 // 3


def test_unified_gives_more_lookups_to_features_that_say_more() -> None:
    flat = fe.Schema(
        fe.Feature(name, n, counts=np.full(n, 10)) for name, n in (("a", 10_000), ("b", 16))
    )
    layer = fe.embedding(flat, "unified(lookups=2, allot=auto)", dim=8, ratio=4)
    assert layer.source.address.lookups == (3, 1)  # 10 : 2, the fourth roots
    assert layer.widths == (12, 4)
    one_id = np.zeros(10_000, np.int64)
    one_id[0] = 10**6
    skewed = flat.with_counts({"a": one_id})
    layer = fe.embedding(skewed, "unified(lookups=2, allot=auto)", dim=8, ratio=4)
    assert layer.source.address.lookups == (1, 3)
    unknown = fe.Schema([fe.Feature("a", 10_000), fe.Feature("b", 16), fe.Feature("url")])
    layer = fe.embedding(unknown, "unified(lookups=2, allot=auto)", dim=8, budget="40kB")
    few, many, endless = layer.source.address.lookups[1::-1] + layer.source.address.lookups[2:]
    assert few < many <= endless


def test_a_feature_with_fewer_lookups_reads_no_other_rows() -> None:
    layer = fe.embedding(SCHEMA, "unified(rows=5000, lookups=2, per_feature={b: 1})", dim=4)
    rows = layer.source.address(IDS, torch.arange(3))
    assert torch.equal(rows[:, 1, 0], rows[:, 1, 1])
    assert not torch.equal(rows[:, 0, 0], rows[:, 0, 1])


@pytest.mark.parametrize(
    "method",
    ["hash", "multi_hash", "multi_hash(combine=concat)", "unified", "robe", "double_hash"],
)
def test_any_key_works_without_a_vocabulary(method: str) -> None:
    schema = fe.Schema([fe.Feature("url"), fe.Feature("device", 12)])
    layer = fe.embedding(schema, method, dim=8, budget="8kB")
    assert 4000 < layer.memory().serving <= 8000
    keys = torch.tensor([[2**63 - 1, 3], [0, 3], [2**40 + 5, 3]])
    out = layer.freeze()(keys)[:, : layer.widths[0]]
    assert torch.isfinite(out).all()
    assert len(out.unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("spec", "trained_by_others"),
    [
        ("hash(rows=30)", True),
        ("multi_hash(rows=30)", True),
        ("double_hash(rows=30)", True),
        ("unified(rows=30)", True),
        ("robe(blocks=30)", True),
        ("qr(rows=40)", True),
        ("frequency(rows=30)", True),
        ("adapt(rows=30)", True),
        ("memcom(rows=30)", True),
        ("lowdim(width=2)", False),
        ("full", False),
    ],
)
def test_what_an_id_gets_that_was_never_seen(spec: str, trained_by_others: bool) -> None:
    schema = fe.Schema([fe.Feature("a", 400, counts=np.r_[np.full(200, 5), np.zeros(200, int)])])
    layer = fe.embedding(schema, spec, dim=4)
    unseen = torch.arange(200, 400)[:, None]
    before = layer(unseen).detach()
    optimizer = fe.optim.RowSGD(layer.parameters(), lr=1.0)
    layer(torch.arange(200)[:, None]).square().sum().backward()
    optimizer.step()
    moved = (layer(unseen).detach() - before).abs().amax(1) > 0
    assert float(moved.float().mean()) == (1.0 if trained_by_others else 0.0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("multi_hash(combine=max)", ["combine", "mean, sum, concat", "max"]),
        ("multi_hash(combine=concat, probes=3)", ["divide", "dim=16", "probes=3"]),
        ("multi_hash(combine=concat, weights=1.0)", ["weights", "concat"]),
        ("double_hash(hot_share=1.5)", ["hot_share", "between 0 and 1", "1.5"]),
        ("qr(rows=12)", ["rows", "at least"]),
        ("qr(per_feature={z: 3})", ["unknown feature", "z"]),
        ("qr(partitions=3, combine=concat)", ["divide", "dim=16", "partitions=3"]),
        ("robe(chunk=0)", ["chunk", "at least 1"]),
        ("unified(allot=some)", ["allot", "equal or auto", "some"]),
        ("unified(tables=9, rows=5)", ["rows", "at least 9"]),
        ("memcom(rows=1)", ["rows", "at least 3"]),
    ],
)
def test_settings_that_are_not_allowed(spec: str, words: list[str]) -> None:
    with pytest.raises(fe.FeatembError) as error:
        fe.embedding(SCHEMA, spec, dim=16)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_signs_are_even_and_unrelated() -> None:
    """Signs are as often + as -, and differ between numbers of a vector."""
    layer = fe.embedding(fe.Schema([fe.Feature("a")]), "robe(blocks=3, signs=true)", dim=80)
    with torch.no_grad():
        layer.source.rows.weight.fill_(1.0)
    out = layer(torch.arange(4000)[:, None])
    assert set(out.unique().tolist()) == {-1.0, 1.0}
    assert float(out.detach().mean(0).abs().max()) < 5 / math.sqrt(4000)
    correlation = np.corrcoef(out.detach().numpy().T)
    assert np.abs(correlation - np.eye(80)).max() < 6 / math.sqrt(4000)
