"""`mgqe`: which codewords which ids may have, its stored form, bytes and budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from public_sizes import SCHEMAS
from torch import Tensor

import featemb as fe
from featemb import optim
from featemb.parts.granular import HotCodes
from featemb.parts.hot import HotBitmap, HotRange
from featemb.parts.learned_codes import LearnedCodes

SIZES = (95, 40, 2)
FALLING = [np.arange(n, 0, -1) for n in SIZES]
UNKNOWN = [np.array([0, *range(n, 1, -1)]) for n in SIZES]  # id 0 is an unknown slot
MIXED = [np.random.default_rng(n).permutation(n) + 1 for n in SIZES]
SPEC = "mgqe(codewords=12, tail_codewords=3, parts=2, top=0.2)"


def schema(counts: list[np.ndarray] | None) -> fe.Schema:
    counts = counts or [None] * 3  # type: ignore[list-item]
    pairs = zip("abc", SIZES, counts, strict=True)
    return fe.Schema([fe.Feature(name, n, counts=one) for name, n, one in pairs])


def trained(spec: str, counts: list[np.ndarray] | None, steps: int = 40) -> fe.FeatureEmbedding:
    layer = fe.embedding(schema(counts), spec, dim=6, seed=1)
    optimizers = optim.build(layer, lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.stack([torch.randint(0, n, (50,), generator=generator) for n in SIZES], 1)
        loss = (layer(batch) - batch.repeat_interleave(6, 1).cos()).square().mean()
        layer.zero_grad()
        (loss + layer.penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()
    return layer


def source(layer: fe.FeatureEmbedding) -> LearnedCodes:
    assert isinstance(layer.source, LearnedCodes)
    return layer.source


def frequent(counts: list[np.ndarray] | None, feature: int, top: float) -> set[int]:
    n = SIZES[feature]
    values = np.arange(n, 0, -1) if counts is None else counts[feature]
    return set(np.argsort(-values, kind="stable")[: math.ceil(top * n)].tolist())


def allowed_codes(layer: fe.FeatureEmbedding, feature: int, value: int, size: int) -> list[int]:
    """The nearest of the first codewords of each part, in double precision."""
    codes = source(layer)
    row = sum(SIZES[:feature]) + value
    queries = codes.table.weight[row].detach().double().view(codes.parts, -1)
    stride, first = codes.sizes[feature], codes.offsets[feature]
    weight = codes.books[0].weight.detach().double()
    found = []
    for part, own in enumerate(queries):
        book = weight[first + part * stride : first + part * stride + size]
        found.append(int((book - own).square().sum(1).argmin()))
    return found


@pytest.mark.parametrize("counts", [None, FALLING, UNKNOWN, MIXED])
def test_frequent_ids_have_all_codewords_and_the_tail_the_first_few(
    counts: list[np.ndarray] | None,
) -> None:
    layer = trained(SPEC, counts)
    address = layer.freeze().source.address
    assert isinstance(address.codes, HotCodes)
    beyond = 0
    for feature in (0, 1):
        hot = frequent(counts, feature, 0.2)
        for value in range(SIZES[feature]):
            wanted = allowed_codes(layer, feature, value, 12 if value in hot else 3)
            index = value * 2 + torch.arange(2)
            stored = address.codes(index, torch.full((2,), feature)).tolist()
            assert stored == wanted
            assert value in hot or max(stored) < 3
            beyond += sum(code >= 3 for code in stored)
    assert beyond > 10  # frequent ids use what they alone may have


@pytest.mark.parametrize("counts", [None, FALLING, UNKNOWN, MIXED])
def test_served_answers_are_those_of_eval_mode(counts: list[np.ndarray] | None) -> None:
    layer = trained(SPEC, counts).eval()
    frozen = layer.freeze()
    for feature, n in enumerate(SIZES):
        every = torch.arange(n)
        which = torch.full_like(every, feature)
        assert torch.equal(frozen.lookup(every, which), layer.lookup(every, which))


def test_the_tail_trains_through_its_own_codewords_alone() -> None:
    """No id of the tail moves a codeword that only frequent ids may have."""
    layer = fe.embedding(schema(FALLING), SPEC, dim=6)
    tail = torch.arange(30, 95)
    layer.lookup(tail, torch.zeros_like(tail))
    layer.penalty().backward()
    grad = source(layer).books[0].weight.grad
    assert grad is not None
    moved = grad.to_dense().abs().sum(1) > 0
    for part in range(2):
        assert moved[part * 12 : part * 12 + 3].any()
        assert not moved[part * 12 + 3 : part * 12 + 12].any()


def test_all_or_no_frequent_ids_is_dpq() -> None:
    def answers(spec: str) -> Tensor:
        layer = trained(spec, FALLING)
        ids = torch.arange(95)
        return layer.freeze().lookup(ids, torch.zeros_like(ids))

    every = answers("mgqe(codewords=12, tail_codewords=3, parts=2, top=1.0)")
    assert torch.equal(every, answers("dpq(codewords=12, parts=2)"))
    none = answers("mgqe(codewords=12, tail_codewords=3, parts=2, top=0.0)")
    assert torch.equal(none, answers("dpq(codewords=3, parts=2)"))


def words(bits: int) -> int:
    return 4 * math.ceil(bits / 32)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    ("counts", "flags"), [(FALLING, 0), (UNKNOWN, 0), (MIXED, 12 * (2 + 1 + 1))]
)
def test_bytes_are_exact(counts: list[np.ndarray], flags: int, parts: int) -> None:
    """4 and 2 bits a code; the bitmap has words of 64 ids, where ids are in no order."""
    spec = f"mgqe(codewords=12, tail_codewords=3, parts={parts}, top=0.2)"
    layer = fe.embedding(schema(counts), spec, dim=6)
    wanted = flags + 4 * 2 * 6
    for n in SIZES[:2]:
        hot = math.ceil(0.2 * n)
        wanted += words(n * parts * 2) + words(hot * parts * 2) + 4 * 12 * 6
    assert layer.memory().serving == wanted
    meta = fe.embedding(schema(counts), spec, dim=6, device="meta")
    assert meta.memory().serving == wanted
    part = layer.freeze().source.address.codes.hot
    assert isinstance(part, HotBitmap if flags else HotRange)


def test_codes_of_as_many_bits_need_no_frequent_ids() -> None:
    layer = trained("mgqe(codewords=12, tail_codewords=9, parts=2)", MIXED)
    assert set(layer.memory().parts) == {"codes", "codebooks"}
    ids = torch.arange(95)
    served = layer.freeze().lookup(ids, torch.zeros_like(ids))
    assert torch.equal(served, layer.eval().lookup(ids, torch.zeros_like(ids)))


@pytest.mark.parametrize(("parts", "flagged"), [(8, 0.1608), (4, 0.1117), (2, 0.0872), (1, 0.075)])
def test_floors_on_criteo_are_the_published_ones_without_their_flag(
    parts: int, flagged: float
) -> None:
    """The authors' accounting has a number of 4 bytes an id: 1/16 of the full table at width 16."""
    data = SCHEMAS["criteo"]
    spec = f"mgqe(codewords=256, tail_codewords=64, parts={parts})"
    share = fe.embedding(data, spec, dim=16, device="meta").memory().serving / data.full_bytes(16)
    assert share == pytest.approx(flagged - 1 / 16, rel=0.03)


@pytest.mark.parametrize("ratio", [10, 20, 50, 100])
@pytest.mark.parametrize("data", SCHEMAS)
def test_budgets_are_used(data: str, ratio: int) -> None:
    layer = fe.embedding(SCHEMAS[data], "mgqe", dim=16, ratio=ratio, device="meta")
    limit = SCHEMAS[data].full_bytes(16) / ratio
    assert 0.85 * limit < layer.memory().serving <= limit
    assert max(source(layer).tails) == max(2, max(source(layer).sizes) // 4)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mgqe(top=1.5)", "top"),
        ("mgqe(top=-0.1)", "top"),
        ("mgqe(tail_codewords=0)", "tail_codewords"),
        ("mgqe(codewords=1)", "codewords"),
        ("mgqe+int4", "row format of its own"),
    ],
)
def test_wrong_settings_are_refused(text: str, names: str) -> None:
    with pytest.raises(fe.ConfigError, match=names):
        fe.parse(text)
