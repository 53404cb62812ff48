"""`dpq`: its formula and gradients in plain PyTorch, its codes by brute force, bytes, budgets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from public_sizes import SCHEMAS
from torch import Tensor
from torch.nn.functional import normalize

import featemb as fe
from featemb import optim
from featemb.check.case import BAGS as BAG_SCHEMA
from featemb.check.case import SINGLE, LinearReader, bags, task
from featemb.codebooks import Coder
from featemb.fit import fit
from featemb.keys import best_keys
from featemb.parts.learned_codes import LearnedCodes

SIZES = (61, 23, 2)
SCHEMA = fe.Schema([fe.Feature(name, n) for name, n in zip("abc", SIZES, strict=True)])
FORMS = ("", ", shared=true", ", grain=table", ", grain=table, shared=true")


def made(spec: str, schema: fe.Schema = SCHEMA, dim: int = 6) -> fe.FeatureEmbedding:
    return fe.embedding(schema, spec, dim=dim, seed=3)


def source(layer: fe.FeatureEmbedding) -> LearnedCodes:
    assert isinstance(layer.source, LearnedCodes)
    return layer.source


def ids(batch: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in SIZES], 1)


def book(layer: fe.FeatureEmbedding, feature: int, part: int, which: int = 0) -> Tensor:
    """The codewords ``[K, C]`` of a part, straight from the table."""
    codes, weight = source(layer), source(layer).books[which].weight
    size = codes.sizes[feature]
    first = codes.offsets[feature] + (0 if codes.shared else part * size)
    return weight[first : first + size]


def query(layer: fe.FeatureEmbedding, feature: int, value: int) -> Tensor:
    """The parts ``[M, C]`` of an id's query."""
    row = sum(SIZES[:feature]) + value
    return source(layer).table.weight[row].view(source(layer).parts, -1)


def plain_codes(layer: fe.FeatureEmbedding, feature: int, value: int) -> list[int]:
    """The nearest codewords of an id, in double precision."""
    found = []
    for part, own in enumerate(query(layer, feature, value).detach().double()):
        keys = book(layer, feature, part).detach().double()
        if len(source(layer).books) > 1:
            scores = normalize(keys, dim=1) @ own
        else:
            scores = -(keys - own).square().sum(1)
        found.append(int(scores.argmax()))
    return found


def plain_vector(layer: fe.FeatureEmbedding, feature: int, value: int) -> tuple[Tensor, Tensor]:
    """The vector of an id with the gradients that it should have, and its loss of codewords."""
    queries = query(layer, feature, value)
    if not source(layer).sizes[feature]:
        return queries.flatten(), queries.new_zeros(0)
    vectors, gaps = [], []
    for part, code in enumerate(plain_codes(layer, feature, value)):
        own, keys = queries[part], book(layer, feature, part)
        if len(source(layer).books) == 1:
            vectors.append(keys[code].detach() + own - own.detach())
            gaps.append((keys[code] - own.detach()).square())
            continue
        values = book(layer, feature, part, 1)
        cosines = normalize(keys, dim=1) @ normalize(own, dim=0)
        share = torch.softmax(cosines / source(layer).temperature, 0)
        choice = torch.nn.functional.one_hot(torch.tensor(code), len(keys)).to(own)
        vectors.append(choice @ values + (share - share.detach()) @ values.detach())
    return torch.cat(vectors), torch.cat(gaps) if gaps else queries.new_zeros(0)


def gradients(layer: fe.FeatureEmbedding, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
    zeros = [torch.zeros_like(parameter) for parameter in layer.parameters()]
    return [z if g is None else g for z, g in zip(zeros, found, strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["vq", "sx"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_vectors_and_gradients_are_the_formula(variant: str, parts: int, form: str) -> None:
    layer = made(f"dpq(codewords=7, parts={parts}, variant={variant}{form})").double()
    batch = ids()
    reader = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    out = layer(batch).view(-1, 3, 6)
    plain = [[plain_vector(layer, f, int(v)) for f, v in enumerate(row)] for row in batch]
    wanted = torch.stack([torch.stack([one[0] for one in row]) for row in plain])
    assert torch.allclose(out, wanted, atol=1e-14)
    loss, other = ((one.tanh() * reader).sum() for one in (out, wanted))
    for mine, theirs in zip(gradients(layer, loss), gradients(layer, other), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-13)
    gaps = torch.cat([one[1] for row in plain for one in row])
    if variant == "sx":
        assert float(layer.penalty()) == 0
    else:
        assert torch.allclose(layer.penalty(), gaps.mean(), atol=1e-15)
        mine, theirs = gradients(layer, layer.penalty()), gradients(layer, gaps.mean())
        assert mine[1].abs().sum() > 0
        assert not mine[0].any()
        assert torch.allclose(mine[1], theirs[1], atol=1e-13)


@pytest.mark.parametrize("spec", ["dpq(codewords=7, parts=2", "mgqe(codewords=7, parts=2"])
def test_codewords_may_have_the_task_gradient_too(spec: str) -> None:
    layer, plain = (made(f"{spec}{more})").double() for more in (", task_gradient=true", ""))
    batch = ids()
    reader = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    outs = [one(batch).view(-1, 3, 6) for one in (layer, plain)]
    assert torch.equal(*outs)
    found, without = (
        gradients(one, (out.tanh() * reader).sum())
        for one, out in zip((layer, plain), outs, strict=True)
    )
    assert torch.equal(found[0], without[0])
    assert not without[1].any()
    # the gradient of a codeword is the sum of those of the queries that it answers for
    for number in (0, 1):
        codes = source(layer).codes(number, torch.arange(SIZES[number]), exact=True)
        first, queries = sum(SIZES[:number]), found[0]
        for part, code in itertools.product(range(2), range(7)):
            own = [first + v for v in range(SIZES[number]) if codes[v, part] == code]
            wanted = queries[own].view(-1, 2, 3)[:, part].sum(0)
            word = source(layer).offsets[number] + part * 7 + code
            assert torch.allclose(found[1][word], wanted, atol=1e-13)


def test_commitment_pulls_the_queries() -> None:
    layer = made("dpq(codewords=7, parts=2, commitment=0.25)")
    batch = ids()
    layer(batch)
    codes = source(layer)
    grad = gradients(layer, layer.penalty())[0]
    one = 23 + 61  # feature c is whole: no loss reaches it
    assert not grad[one:].any()
    coded = 40 * 2 * 6
    value = int(batch[0, 0])
    apart = query(layer, 0, value) - torch.stack(
        [book(layer, 0, m)[code] for m, code in enumerate(plain_codes(layer, 0, value))]
    )
    count = int((batch[:, 0] == value).sum())
    assert codes.parts == 2
    assert torch.allclose(grad[value], 0.25 * 2 * count * apart.flatten() / coded)


def test_training_answers_are_exactly_codewords() -> None:
    layer = made("dpq(codewords=7, parts=2)")
    training = layer(ids())
    assert torch.equal(training, layer.eval()(ids()))


@pytest.mark.parametrize("variant", ["vq", "sx"])
def test_flat_and_dense_lookups_have_the_same_gradients(variant: str) -> None:
    layer, batch = made(f"dpq(codewords=7, parts=3, variant={variant})"), ids()
    dense = layer(batch).view(-1, 6)
    one = gradients(layer, dense.sin().sum() + layer.penalty())
    flat = layer.lookup(batch.reshape(-1), torch.arange(3).repeat(len(batch)))
    assert torch.equal(flat, dense)
    other = gradients(layer, flat.sin().sum() + layer.penalty())
    for mine, theirs in zip(one, other, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_bags_without_some_features_train() -> None:
    layer = made("dpq(codewords=7, parts=2)", BAG_SCHEMA)
    given = bags()
    empty = type(given)(given.values[:0], torch.zeros_like(given.lengths))
    for one in (given, empty):
        optim.RowAdam(layer.parameters())
        (layer(one).sum() + layer.penalty()).backward()
    assert not layer(empty).any()


# best_keys


def in_order(q: Tensor, keys: Tensor) -> list[int]:
    """Distances whose terms are added one after the other, in single precision."""
    found = []
    for one in q:
        total = torch.zeros(len(keys))
        for own, other in zip(one, keys.T, strict=True):
            apart = own - other
            total = total + apart * apart
        found.append(int(total.argmin()))
    return found


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("keys", [1, 2, 9, 256])
@pytest.mark.parametrize("dot", [True, False])
def test_best_keys_are_those_of_brute_force(keys: int, width: int, dot: bool) -> None:
    generator = torch.Generator().manual_seed(keys)
    q, k = (torch.randn(n, width, generator=generator) for n in (300, keys))
    scores = -(q.double() @ k.double().T) if dot else torch.cdist(q.double(), k.double())
    for exact in (True, False):
        found = best_keys(q, k, dot=dot, allowed=None, exact=exact)
        chosen, best = scores.gather(1, found[:, None])[:, 0], scores.amin(1)
        assert torch.allclose(chosen, best, atol=1e-6)
    limit = torch.arange(300) % keys + 1
    found = best_keys(q, k, dot=dot, allowed=limit, exact=True)
    for row, number in enumerate(found):
        assert number < limit[row]
        assert torch.allclose(scores[row, number], scores[row, : limit[row]].min(), atol=1e-6)


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_ties_do_not_depend_on_the_batch(far: float, precision: str) -> None:
    """Equal keys, keys that differ in the last bit, and queries in between: the worst case."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(40, 8, generator=generator) + far
    k = torch.cat([k, k, torch.nextafter(k, torch.zeros_like(k))])
    q = torch.cat([k, (k[:60] + k[60:]) / 2, k + 1e-7])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        whole = best_keys(q, k, dot=False, allowed=None, exact=True)
        alone = [best_keys(one[None], k, dot=False, allowed=None, exact=True) for one in q]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(whole, torch.cat(alone))
    assert whole.tolist() == in_order(q, k)
    assert int(best_keys(k[:1], k, dot=False, allowed=None, exact=True)) == 0  # the first of equals


def test_zeros_and_tiny_numbers_have_an_order() -> None:
    q = torch.full((5, 3), 1e-30)
    k = torch.zeros(4, 3)
    assert best_keys(q, k, dot=False, allowed=None, exact=True).tolist() == [0] * 5


# Freezing


def stored_codes(layer: fe.FeatureEmbedding, feature: int) -> Tensor:
    """The codes ``[n, M]`` of a feature, bit by bit from the frozen words."""
    codes = layer.freeze().source.address.codes
    words = [int(word) & 0xFFFFFFFF for word in codes.words]
    n, parts, bits = SIZES[feature], source(layer).parts, codes.bits[feature]
    first = 32 * codes.starts[feature]
    every = [words[b // 32] >> b % 32 & 1 for b in range(first, first + n * parts * bits)]
    numbers = [sum(every[i * bits + b] << b for b in range(bits)) for i in range(n * parts)]
    return torch.tensor(numbers).view(n, parts)


def trained(spec: str, only: int | None = None) -> fe.FeatureEmbedding:
    """Some steps in which no id of feature a above ``only`` is read."""
    layer = made(spec)
    optimizers = optim.build(layer, lr=0.02)
    for step in range(60):
        batch = ids(seed=step)
        if only is not None:
            batch[:, 0] %= only
        loss = (layer(batch) - batch.repeat_interleave(6, 1).sin()).square().mean()
        layer.zero_grad()
        (loss + layer.penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()
    return layer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["vq", "sx"])
def test_every_code_is_the_nearest_at_freeze(variant: str, form: str) -> None:
    """Also of ids that training never read: their queries have not moved, their codewords have."""
    layer = trained(f"dpq(codewords=7, parts=3, variant={variant}{form})", only=20)
    start = made(f"dpq(codewords=7, parts=3, variant={variant}{form})")
    same = (source(layer).table.weight == source(start).table.weight).all(1)
    assert same[20:61].all()
    assert not same[:20].any()
    for feature in (0, 1):
        wanted = [plain_codes(layer, feature, value) for value in range(SIZES[feature])]
        assert stored_codes(layer, feature).tolist() == wanted


@pytest.mark.parametrize("form", FORMS)
def test_eval_mode_is_the_frozen_form_at_any_time(form: str) -> None:
    layer = trained(f"dpq(codewords=7, parts=2{form})")
    assert torch.equal(layer.freeze()(ids()), layer.eval()(ids()))
    other = made(f"dpq(codewords=7, parts=2{form})").eval()
    other.load_state_dict(trained(f"dpq(codewords=7, parts=2{form})").state_dict())
    assert torch.equal(other(ids()), layer(ids()))
    assert torch.equal(other.freeze()(ids()), layer(ids()))
    for feature, n in enumerate(SIZES):  # one id at a time: no batch decides
        for value in range(n):
            alone = layer.lookup(torch.tensor([value]), torch.tensor([feature]))
            row = torch.tensor([[value if f == feature else 0 for f in range(3)]])
            assert torch.equal(layer(row).view(3, 6)[feature], alone[0])


def test_a_table_that_is_not_finite_is_refused() -> None:
    for name, row in (("table", 5), ("books", 3)):
        layer = made("dpq(codewords=7, parts=2)")
        part = getattr(source(layer), name)
        weight = part.weight if name == "table" else part[0].weight
        with torch.no_grad():
            weight[row, 1] = math.nan
        with pytest.raises(fe.DataError, match=f"row {row} "):
            layer.freeze()


def test_codewords_follow_their_queries() -> None:
    """The loss of the codewords alone moves them to the means of their queries: k-means."""
    layer = made("dpq(codewords=5, parts=2)")
    every = torch.arange(61)
    optimizer = torch.optim.SGD(source(layer).books.parameters(), lr=20.0)
    for _ in range(300):
        layer.zero_grad()
        layer.lookup(every, torch.zeros_like(every))
        layer.penalty().backward()
        optimizer.step()
    for part in range(2):
        queries = torch.stack([query(layer, 0, v)[part] for v in range(61)])
        codes = torch.tensor([plain_codes(layer, 0, v)[part] for v in range(61)])
        for code in codes.unique():
            mean = queries[codes == code].mean(0)
            assert torch.allclose(book(layer, 0, part)[code], mean, atol=1e-4)


def test_few_codewords_stay_unused() -> None:
    """No remedy is needed on a task of the checks: nearly all codewords are somebody's nearest."""
    layer = fe.check.Case("dpq(codewords=16, parts=4)").layer()
    data = task()
    fit(LinearReader(layer), lambda epoch: data, epochs=4, lr=0.03)
    codes = source(layer).codes(0, torch.arange(97), exact=True)
    used = sum(len(column.unique()) for column in codes.T) / (4 * 16)
    assert used > 0.75


# Bytes


def words(bits: int) -> int:
    return 4 * math.ceil(bits / 32)


@pytest.mark.parametrize("codewords", [2, 5, 16, 21, 60, 300])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_bytes_are_exact(parts: int, codewords: int) -> None:
    for form, shared in (("", 1), (", shared=true", parts)):
        layer = made(f"dpq(codewords={codewords}, parts={parts}{form})")
        wanted = 0
        for n in SIZES:
            size = min(codewords, n)
            coded = words(n * parts * math.ceil(math.log2(size))) + 4 * size * 6 // shared
            wanted += min(coded, 4 * n * 6)
        assert layer.memory().serving == wanted
    tabled = made(f"dpq(codewords={codewords}, parts={parts}, grain=table)")
    size = min(codewords, sum(SIZES))
    codes = sum(words(n * parts * math.ceil(math.log2(size))) for n in SIZES)
    assert tabled.memory().serving == min(codes + 4 * size * 6, 4 * 6 * sum(SIZES))


def test_a_feature_that_codes_would_not_shrink_keeps_its_rows() -> None:
    layer = made("dpq(codewords=16, parts=3)")
    assert source(layer).sizes == (16, 16, 0)
    assert torch.equal(
        layer(ids()).view(-1, 3, 6)[:, 2], source(layer).table.weight[84 + ids()[:, 2]]
    )
    everything = made("dpq(codewords=300, parts=6)")
    assert not any(source(everything).sizes)
    assert [name for name, _ in everything.named_parameters()] == ["source.table.weight"]
    assert torch.equal(everything.freeze()(ids()), everything(ids()))


@pytest.mark.parametrize(("dim", "asked", "used"), [(1, 4, 1), (7, 4, 1), (30, 4, 3), (30, 12, 10)])
def test_parts_are_a_divisor_of_the_width(dim: int, asked: int, used: int) -> None:
    layer = made(f"dpq(codewords=4, parts={asked})", dim=dim)
    assert source(layer).parts == used
    assert torch.equal(layer.freeze()(ids()), layer.eval()(ids()))


@pytest.mark.parametrize(
    ("spec", "share"),
    [
        ("dpq(codewords=32, parts=8)", 0.0781),
        ("dpq(codewords=256, parts=4)", 0.0626),
        ("dpq(codewords=256, parts=1)", 0.0158),
    ],
)
def test_floors_on_criteo_are_those_of_the_literature(spec: str, share: float) -> None:
    schema = SCHEMAS["criteo"]
    layer = fe.embedding(schema, spec, dim=16, device="meta")
    assert layer.memory().serving / schema.full_bytes(16) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("grain", ["feature", "table"])
@pytest.mark.parametrize("ratio", [5, 10, 20, 50, 100])
@pytest.mark.parametrize("data", SCHEMAS)
def test_budgets_are_used(data: str, ratio: int, grain: str) -> None:
    schema = SCHEMAS[data]
    layer = fe.embedding(schema, f"dpq(grain={grain})", dim=16, ratio=ratio, device="meta")
    limit = schema.full_bytes(16) / ratio
    assert 0.9 * limit < layer.memory().serving <= limit


@pytest.mark.parametrize("limit", [300, 500, 800, 1100, 1500])
def test_the_sizes_are_those_of_most_bits(limit: int) -> None:
    """All parts and codewords are tried out: no other choice within the limit has more bits."""
    coder = Coder(SCHEMA, 6)
    found = made(f"dpq(limit={limit})")
    codes = source(found)
    assert found.memory().serving <= limit
    best = 0.0
    for parts, size in itertools.product((1, 2, 3, 6), range(2, 257)):
        sizes = coder.of(parts, size)
        if coder.bytes(sizes) <= limit:
            best = max(best, parts * math.log2(max(sizes.sizes) or 1))
    assert codes.parts * math.log2(max(codes.sizes) or 1) == pytest.approx(best)


@pytest.mark.parametrize("ratio", [3, 9, 30, 70])
@pytest.mark.parametrize("spec", ["dpq(codewords=16)", "dpq(parts=4)", "dpq(shared=true)"])
def test_the_other_size_follows_a_ratio(spec: str, ratio: float) -> None:
    schema = fe.Schema([fe.Feature("a", 20_000), fe.Feature("b", 700), fe.Feature("c", 9)])
    layer = fe.embedding(schema, spec, dim=12, ratio=ratio, device="meta")
    limit = schema.full_bytes(12) / ratio
    assert layer.memory().serving <= limit
    coder = Coder(schema, 12, shared="shared" in spec)
    best, given = 0.0, layer.config
    for parts, size in itertools.product((1, 2, 3, 4, 6, 12), (*range(2, 65), 128, 256)):
        if given.parts in (None, parts) and given.codewords in (None, size):
            sizes = coder.of(parts, size)
            if coder.bytes(sizes) <= limit:
                best = max(best, parts * math.log2(max(sizes.sizes)))
    assert 0 < best <= source(layer).parts * math.log2(max(source(layer).sizes)) + 1e-9


def test_set_sizes_are_kept_within_a_limit() -> None:
    assert source(made("dpq(codewords=9, limit=900)")).sizes[0] == 9
    assert source(made("dpq(parts=2, limit=900)")).parts == 2
    exact = made("dpq(codewords=9, parts=2)").memory().serving
    made(f"dpq(codewords=9, parts=2, limit={exact})")
    with pytest.raises(fe.BudgetError) as error:
        made(f"dpq(codewords=9, parts=2, limit={exact - 1})")
    assert error.value.floor == exact
    with pytest.raises(fe.BudgetError) as error:
        fe.embedding(SCHEMA, "dpq", dim=6, budget=10)
    assert error.value.floor == made("dpq(codewords=2, parts=1)").memory().serving


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("dpq(codewords=1)", "codewords"),
        ("dpq(parts=0)", "parts"),
        ("dpq(limit=0)", "limit"),
        ("dpq(variant=pq)", "variant"),
        ("dpq(grain=row)", "grain"),
        ("dpq(temperature=0.0)", "temperature"),
        ("dpq(commitment=-1.0)", "commitment"),
        ("dpq(variant=sx, commitment=1.0)", "commitment"),
        ("dpq(variant=sx, task_gradient=true)", "task_gradient"),
        ("dpq(codebook_lr=-1.0)", "codebook_lr"),
        ("dpq+int8", "row format of its own"),
    ],
)
def test_wrong_settings_are_refused(text: str, names: str) -> None:
    with pytest.raises(fe.ConfigError, match=names):
        fe.parse(text)


@pytest.mark.parametrize("outer", ["hash(rows=40)", "qr", "lowdim(width=2)", "memcom(rows=30)"])
def test_it_stores_the_rows_of_other_methods(outer: str) -> None:
    layer = fe.embedding(SINGLE, f"{outer}+dpq(codewords=4, parts=2)", dim=8)
    data = task(5)
    model = LinearReader(layer)
    fit(model, lambda epoch: data, epochs=1, lr=0.03)
    assert torch.equal(layer.freeze()(data[0].ids), layer.eval()(data[0].ids))
    assert layer.memory().serving < fe.embedding(SINGLE, outer, dim=8).memory().serving


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_one_feature_of_any_size(n: int, dim: int) -> None:
    schema = fe.Schema([fe.Feature("rows", n)])
    for spec in ("dpq", "dpq(grain=table)", "mgqe", "mgqe(codewords=8, parts=3)"):
        layer = fe.embedding(schema, spec, dim=dim)
        every = torch.arange(n)[:, None]
        (layer(every).sum() + layer.penalty()).backward()
        assert torch.equal(layer.freeze()(every), layer.eval()(every))
        assert layer.memory().serving <= 4 * n * dim


def test_first_order_weights_are_hashed() -> None:
    layer = fe.embedding(SINGLE, "dpq", dim=8, ratio=5)
    assert layer.companion(1).config.name == "hash"
