"""`pq` and `rq`: their formulas, bytes and errors, against faiss at the same bits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import featemb as fe
from featemb import lloyd
from featemb.codecs import pq, rq
from featemb.codecs.base import Codec, codec_by_name
from featemb.codecs.floats import FloatRows
from featemb.codecs.pq import PQ, ProductRows
from featemb.codecs.rq import RQ, ResidualRows
from featemb.lloyd import k_means, nearest, thinned
from featemb.memory import module_bytes

# what some builds of faiss say when they are imported
SWIG = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
KINDS = ("gaussian", "clustered", "skewed")
SPECS = (
    "full+pq(parts=2, bits=3)",
    "full+rq(stages=2, bits=2, beam=2)",
    "unified(lookups=2)+pq(parts=3, bits=2)",
    "magnitude(kept=300)+pq(bits=4)",
    "magnitude(unit=rows, kept=100)+rq(stages=1, bits=4)",
    "qr+pq(parts=4, bits=2)",
    "mde(limit=2500)+rq(stages=2, bits=2)",
)


def table(kind: str, rows: int = 3000, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, width, generator=generator)
    if kind == "gaussian":
        return noise
    if kind == "clustered":
        centers = torch.randn(40, width, generator=generator) * 2
        return centers[torch.randint(0, 40, (rows,), generator=generator)] + 0.3 * noise
    norms = 3 * torch.rand(rows, 1, generator=generator) ** 4
    return noise * norms * 0.8 ** torch.arange(width)


def decoded(codec: Codec, rows: Tensor) -> Tensor:
    return codec.encode(rows)(torch.arange(len(rows)))


def mse(codec: Codec, rows: Tensor) -> float:
    return float((decoded(codec, rows).double() - rows.double()).square().mean())


@SWIG
@pytest.mark.parametrize(("parts", "bits"), [(2, 4), (4, 4), (4, 6), (8, 5), (4, 8)])
def test_pq_is_no_worse_than_faiss(parts: int, bits: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    for kind in KINDS:
        rows = table(kind)
        other = faiss.ProductQuantizer(16, parts, bits)
        other.train(rows.numpy())
        back = other.decode(other.compute_codes(rows.numpy()))
        error = float(np.square(back - rows.numpy(), dtype=np.float64).mean())
        assert mse(PQ(parts=parts, bits=bits), rows) <= error


@SWIG
@pytest.mark.parametrize(("stages", "bits"), [(2, 4), (4, 4), (3, 6), (2, 8)])
def test_rq_is_no_worse_than_faiss(stages: int, bits: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    for kind in KINDS:
        rows = table(kind)
        other = faiss.ResidualQuantizer(16, stages, bits)
        other.train(rows.numpy())
        back = other.decode(other.compute_codes(rows.numpy()))
        error = float(np.square(back - rows.numpy(), dtype=np.float64).mean())
        assert mse(RQ(stages=stages, bits=bits), rows) <= error


def plain_codes(codes: Any, count: int, bits: int) -> list[int]:
    """Codes from the words bit by bit."""
    words = [int(word) & 0xFFFFFFFF for word in codes.words]
    every = [words[b // 32] >> b % 32 & 1 for b in range(count * bits)]
    return [sum(every[i * bits + b] << b for b in range(bits)) for i in range(count)]


@pytest.mark.parametrize(("width", "parts", "bits"), [(16, 4, 3), (7, 3, 5), (1, 4, 4), (5, 5, 1)])
def test_pq_is_its_formula(width: int, parts: int, bits: int) -> None:
    rows = table("skewed", 400, width)
    part = PQ(parts=parts, bits=bits).encode(rows)
    assert isinstance(part, ProductRows)
    parts = min(parts, width)
    assert sum(part.widths) == width
    assert max(part.widths) - min(part.widths) <= 1
    codes = plain_codes(part.codes, 400 * parts, bits)
    starts = [0, *itertools.accumulate(part.widths)]
    for row in (0, 1, 57, 399):
        pieces = []
        for m, (first, last) in enumerate(itertools.pairwise(starts)):
            words = part.codebook[:, first:last]
            apart = (words.double() - rows[row, first:last].double()).square().sum(1)
            code = codes[row * parts + m]
            assert float(apart[code]) <= float(apart.min()) * (1 + 1e-4) + 1e-12
            pieces.append(words[code])
        assert torch.equal(part(torch.tensor([[row]]))[0, 0], torch.cat(pieces))


def test_rq_is_its_formula() -> None:
    rows = table("clustered", 500, 6)
    part = RQ(stages=3, bits=3).encode(rows)
    assert isinstance(part, ResidualRows)
    codes = torch.tensor(plain_codes(part.codes, 1500, 3)).view(500, 3)
    wanted = sum(part.codebooks[s][codes[:, s]] for s in range(3))
    assert torch.equal(part(torch.arange(500)), wanted)


def test_the_widest_beam_finds_the_best_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, books = table("gaussian", 50, 4), torch.randn(3, 4, 4, generator=generator)
    every = torch.stack(
        [
            books[0, a] + books[1, b] + books[2, c]
            for a, b, c in itertools.product(range(4), repeat=3)
        ]
    )
    best = (rows[:, None] - every).square().sum(2).amin(1)
    codes = rq.searched(rows, books, beam=64)
    found = (rows - sum(books[s][codes[:, s]] for s in range(3))).square().sum(1)
    assert torch.allclose(found, best, atol=1e-5)
    greedy = rq.searched(rows, books, beam=1)
    worse = (rows - sum(books[s][greedy[:, s]] for s in range(3))).square().sum(1)
    assert float(worse.sum()) > float(best.sum())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_bytes_are_their_formula(rows: int, width: int, parts: int, bits: int, pq_: bool) -> None:
    meta = torch.empty(rows, width, device="meta")
    part = (PQ(parts=parts, bits=bits) if pq_ else RQ(stages=parts, bits=bits)).encode(meta)
    size = min(2**bits, rows)
    codes = min(parts, width) if pq_ else parts
    code_bytes = 4 * math.ceil(rows * codes * math.ceil(math.log2(size)) / 32)
    book_bytes = 4 * size * width * (1 if pq_ else parts)
    plain = 4 * rows * width
    total = sum(module_bytes(part).values())
    assert total == min(plain, code_bytes + book_bytes)
    if isinstance(part, FloatRows):
        assert plain <= code_bytes + book_bytes
    else:
        assert set(module_bytes(part)) <= {"codes", "codebooks"}


@pytest.mark.parametrize("codec", [PQ(parts=3, bits=2), RQ(stages=2, bits=3)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 33, 400])
def test_real_and_planned_bytes_agree(codec: Any, rows: int) -> None:
    real = codec.encode(table("gaussian", rows, 5))
    plan = codec.encode(torch.empty(rows, 5, device="meta"))
    assert module_bytes(real) == module_bytes(plan)
    assert real.describe() == plan.describe()


@pytest.mark.parametrize("codec", [PQ(parts=2, bits=4), RQ(stages=2, bits=4)])
def test_few_distinct_rows_are_exact(codec: Any) -> None:
    kinds = table("gaussian", 9, 6)
    rows = kinds[torch.arange(500) % 9]
    assert (decoded(codec, rows) - rows).abs().max() < 1e-5
    for value in (0.0, -3.5):
        assert torch.equal(decoded(codec, torch.full((500, 6), value)), torch.full((500, 6), value))


@pytest.mark.parametrize("codec", [PQ(parts=2, bits=4), RQ(stages=2, bits=4)])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e37])
def test_scale_does_not_matter(codec: Any, scale: float) -> None:
    rows = table("clustered", 400, 6)
    relative = mse(codec, rows) / float(rows.square().mean())
    scaled = rows * scale
    error = (decoded(codec, scaled).double() - scaled.double()).square().mean()
    assert float(error / scaled.double().square().mean()) < 1.2 * relative


@pytest.mark.parametrize("codec", [PQ(parts=2, bits=5), RQ(stages=2, bits=5)])
def test_one_far_row_leaves_the_others_alone(codec: Any) -> None:
    rows = table("clustered", 400, 6)
    far = rows.clone()
    far[17] = 1e6
    error = (decoded(codec, far) - far).abs().amax(1)
    assert float(error[17]) < 10
    others = torch.arange(400) != 17
    assert float(error[others].square().mean()) < 3 * float(
        (decoded(codec, rows) - rows).abs().amax(1)[others].square().mean()
    )


@pytest.mark.parametrize("codec", [PQ(parts=3, bits=5), RQ(stages=2, bits=5)])
def test_the_stated_error_is_that_of_each_row(codec: Any) -> None:
    rows = table("skewed", 500, 8)
    bound, error = codec.error_bound(rows), (decoded(codec, rows) - rows).abs()
    assert bound.shape == (500, 1)
    assert torch.equal(bound[:, 0], error.amax(1))


@pytest.mark.parametrize("codec", [PQ(parts=3, bits=4), RQ(stages=2, bits=4)])
def test_blocks_of_rows_change_nothing(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table("gaussian", 500, 8)
    whole = codec.encode(rows)
    monkeypatch.setattr(pq, "_BLOCK_ROWS", 64)
    again = codec.encode(rows)
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("codec", [PQ(parts=4, bits=5), RQ(stages=3, bits=5)])
def test_a_sample_is_enough(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table("clustered", 6000)
    whole = mse(codec, rows)
    monkeypatch.setattr(pq, "_SAMPLE", 2000)
    assert mse(codec, rows) < 1.15 * whole


@pytest.mark.parametrize("name", ["pq", "rq"])
def test_rows_that_are_not_finite_are_named(name: str) -> None:
    rows = torch.zeros(9, 4)
    rows[6, 2] = math.nan
    with pytest.raises(fe.DataError, match="row 6"):
        codec_by_name(name).encode(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full+pq(parts=0)", "parts must be at least 1"),
        ("full+pq(bits=17)", "bits must be 1 to 16"),
        ("full+rq(stages=0)", "stages must be at least 1"),
        ("full+rq(bits=0)", "bits must be 1 to 16"),
        ("full+rq(beam=0)", "beam must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(text)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("check", fe.check.checks(), ids=lambda check: check.__name__)
def test_layers_keep_their_contract(spec: str, check: Any) -> None:
    check(fe.check.Case(spec))


def test_layers_shrink() -> None:
    schema = fe.Schema([fe.Feature("a", 5000), fe.Feature("b", 300)])
    layer = fe.embedding(schema, "full+pq(parts=4, bits=6)", dim=16)
    parts = layer.memory().parts
    assert parts == {"codes": 4 * math.ceil(5300 * 4 * 6 / 32), "codebooks": 64 * 16 * 4}
    ids = torch.stack([torch.arange(300)] * 2, 1)
    trained = layer(ids).detach()
    error = (layer.freeze()(ids) - trained).square().mean()
    assert float(error) < 0.25 * float(trained.square().mean())
    solved = fe.embedding(schema, "hash+rq(stages=2, bits=5)", dim=16, ratio=30)
    assert solved.memory().serving <= schema.full_bytes(16) / 30


# k-means


def brute_error(points: Tensor, centroids: Tensor, weights: Tensor | None = None) -> float:
    apart = (points[:, None].double() - centroids.double()).square().sum(2).amin(1)
    return float((apart * (1 if weights is None else weights)).sum())


def test_nearest_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centroids = table("skewed", 300, 5) + 100, table("skewed", 40, 5, seed=1) + 100
    monkeypatch.setattr(lloyd, "_BLOCK_NUMBERS", 1000)
    number, distance = nearest(points, centroids)
    apart = (points[:, None].double() - centroids.double()).square().sum(2)
    assert torch.allclose(distance.double(), apart.amin(1), rtol=1e-3, atol=1e-6)
    assert torch.allclose(apart.gather(1, number[:, None])[:, 0], apart.amin(1), atol=1e-6)


def test_k_means_finds_planted_centers() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(25, 4, generator=generator) * 10
    points = centers[torch.arange(2500) % 25] + 0.01 * torch.randn(2500, 4, generator=generator)
    found = k_means(points, 25, None, generator)
    assert nearest(centers, found)[1].max() < 0.001


def test_k_means_is_a_fixed_point_of_weighted_means() -> None:
    points = table("gaussian", 400, 3)
    weights = torch.arange(400).float()
    centroids = k_means(points, 6, weights, torch.Generator().manual_seed(0))
    number = nearest(points, centroids)[0]
    for k in range(6):
        own = number == k
        mean = (points[own] * weights[own, None]).sum(0) / weights[own].sum()
        assert torch.allclose(centroids[k], mean, atol=0.02)


def test_weights_are_repetitions() -> None:
    points = table("gaussian", 60, 3)
    times = torch.arange(60) % 4 + 1
    weighted = k_means(points, 5, times.float(), torch.Generator().manual_seed(0))
    repeated = k_means(points.repeat_interleave(times, 0), 5, None, torch.Generator())
    one, other = brute_error(points, weighted, times), brute_error(points, repeated, times)
    assert one == pytest.approx(other, rel=0.03)


def test_no_centroid_stays_empty() -> None:
    generator = torch.Generator().manual_seed(3)
    heavy = torch.zeros(10_000, 2)
    points = torch.cat([heavy, torch.randn(60, 2, generator=generator)])
    centroids = k_means(points, 61, None, generator)
    assert len(nearest(points, centroids)[0].unique()) == 61
    assert brute_error(points, centroids) < 1e-6


def test_many_centroids_start_at_random_points() -> None:
    points = table("gaussian", 6000, 4)
    centroids = k_means(points, 2500, None, torch.Generator().manual_seed(0))
    drawn = points[torch.randperm(6000, generator=torch.Generator().manual_seed(1))[:2500]]
    assert brute_error(points[:1000], centroids) < 0.7 * brute_error(points[:1000], drawn)


def test_a_sample_stands_for_all() -> None:
    weights = torch.ones(20_000)
    weights[:100] = 1000.0
    places, mass = thinned(20_000, 2000, weights, torch.Generator().manual_seed(0))
    assert mass is not None
    assert len(places) == pytest.approx(2000, rel=0.1)
    assert torch.equal(places[:100], torch.arange(100))
    assert float(mass.sum() / weights.sum() * weights.mean()) == pytest.approx(1, rel=0.02)
    values = torch.linspace(0, 1, 20_000)
    wanted = (values * weights).sum() / weights.sum()
    assert float((values[places] * mass).sum() / mass.sum()) == pytest.approx(
        float(wanted), rel=0.05
    )
    every, same = thinned(50, 60, weights[:50], torch.Generator())
    assert torch.equal(every, torch.arange(50))
    assert torch.equal(same, weights[:50])
