"""Quality and portability of the seeded hashes (their formula: tests/test_methods.py)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import featemb as fe
from featemb.hashing import bucket, mix64, mix64_int, salts

COUNT = 30_000
KEYS = {
    "sequential": torch.arange(COUNT),
    "strided": torch.arange(COUNT) * 1024,
    "high bits": torch.arange(COUNT) << 40,
    "near the end": torch.iinfo(torch.int64).max - torch.arange(COUNT),
    "squares": torch.arange(COUNT) ** 2,
}
EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1]


def p_uniform(rows: Tensor, cells: int) -> float:
    return float(stats.chisquare(np.bincount(rows.numpy(), minlength=cells)).pvalue)


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_buckets_are_uniform(keys: Tensor, size: int) -> None:
    for salt in salts(torch.tensor(0), 2):
        assert p_uniform(bucket(keys, salt, size), size) > 1e-4


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("seeds", [(0, 1), (0, 2**40), (5, 5)])
def test_salts_are_independent(keys: Tensor, seeds: tuple[int, int]) -> None:
    """Of two seeds, and of two lookups of one seed: also of neighbours, which differ by a bit."""
    first, second = (salts(torch.tensor(seed), 2)[n] for n, seed in enumerate(seeds))
    one, other = bucket(keys, first, 16), bucket(keys, second, 16)
    assert p_uniform(one * 16 + other, 256) > 1e-4


def test_no_two_features_share_a_salt() -> None:
    made = torch.cat([salts(torch.tensor(seed), 500) for seed in range(40)])
    assert len(made.unique()) == len(made)


def test_collisions_are_as_many_as_chance_gives() -> None:
    size = 50_000
    rows = bucket(torch.arange(COUNT), salts(torch.tensor(1), 1)[0], size)
    wanted = size * (1 - (1 - 1 / size) ** COUNT)
    assert abs(len(rows.unique()) - wanted) < 4 * wanted**0.5


def test_one_input_bit_changes_half_of_the_output() -> None:
    keys = torch.randint(0, 2**62, (400,), generator=torch.Generator().manual_seed(0))
    for bit in range(0, 63, 6):
        changed = (mix64(keys) ^ mix64(keys ^ (1 << bit))).tolist()
        share = np.mean([(one & (2**64 - 1)).bit_count() for one in changed]) / 64
        assert 0.48 < share < 0.52


def test_mixing_is_the_same_for_tensors_and_integers_at_the_extremes() -> None:
    mixed = mix64(torch.tensor(EXTREMES)).tolist()
    assert [one & (2**64 - 1) for one in mixed] == [mix64_int(one) for one in EXTREMES]


class Buckets(nn.Module):
    def forward(self, keys: Tensor, seed: Tensor) -> Tensor:
        return bucket(keys[:, None], salts(seed, 3), 1000)


def test_exported_hashes_are_the_same() -> None:
    keys = torch.tensor(EXTREMES)
    for seed in (0, 2**63 - 1):
        inputs = (keys, torch.tensor(seed))
        program = torch.export.export(Buckets(), inputs)
        given = Buckets()(*inputs)
        assert torch.equal(program.module()(*inputs), given)
        assert int(given.min()) >= 0
        assert int(given.max()) < 1000


def movie_ids(data_file: Callable[[str], Path]) -> tuple[Tensor, Tensor]:
    """The users and the movies of MovieLens-1M, by the numbers that its authors gave them."""
    table = pq.read_table(data_file("ml1m"))
    columns = [table[name].to_numpy() for name in table.column_names]
    keys = [torch.from_numpy(np.unique(one)) for one in columns if one.dtype.kind == "i"]
    users, movies = sorted((one for one in keys if 3000 < len(one) < 10_000), key=len)[::-1]
    return users, movies


def test_real_ids_spread_evenly(data_file: Callable[[str], Path]) -> None:
    for keys in movie_ids(data_file):
        for size in (7, 50, 150):
            for salt in salts(torch.tensor(3), 4):
                assert p_uniform(bucket(keys, salt, size), size) > 1e-4


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_features_and_lookups_of_real_ids_are_independent(
    data_file: Callable[[str], Path], seed: int
) -> None:
    """Every pair of (feature, lookup) salts puts the same ids into unrelated rows."""
    features, lookups, cells = 3, 2, 8
    salt = salts(torch.tensor(seed), features * lookups)
    for keys in movie_ids(data_file):
        rows = [bucket(keys, one, cells) for one in salt]
        for first, second in combinations(rows, 2):
            assert p_uniform(first * cells + second, cells * cells) > 1e-5


class Rows(nn.Module):
    """The rows that several layers read, by their addresses."""

    def __init__(self, layers: list[fe.FeatureEmbedding]) -> None:
        super().__init__()
        self.addresses = nn.ModuleList(layer.freeze().source.address for layer in layers)

    def forward(self, ids: Tensor, feature: Tensor) -> tuple[Tensor, ...]:
        return tuple(address(ids, feature) for address in self.addresses)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch
def test_rows_are_the_same_in_export_and_in_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    rng = np.random.default_rng(0)
    cards = {"a": 3000, "b": 70, "c": 3}
    schema = fe.Schema(
        fe.Feature(name, n, counts=rng.integers(0, 50, n)) for name, n in cards.items()
    )
    specs = [
        "hash(rows=900)",
        "multi_hash(rows=900, combine=concat)",
        "unified(rows=500, lookups=2, tables=3, collisionless=5)",
        "qr(rows=900)",
        "qr(rows=900, multiplexed=true, partitions=4)",
        "double_hash(rows=900)",
        "adapt(rows=900)",
        "frequency(rows=900)",
    ]
    made = [fe.embedding(schema, spec, dim=8, seed=2**62 + 7) for spec in specs]
    rows = Rows(made).eval()
    feature = torch.arange(3)

    def draw(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        columns = [torch.randint(0, n, (count,), generator=generator) for n in cards.values()]
        return torch.stack(columns, 1)

    sizes = {"ids": {0: torch.export.Dim("batch", min=2, max=4096)}, "feature": None}
    program = torch.export.export(rows, (draw(8), feature), dynamic_shapes=sizes)
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    path = tmp_path / "rows.onnx"
    exported.save(str(path))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    for count in (2, 333):
        ids = draw(count)
        wanted = rows(ids, feature)
        given = session.run(None, dict(zip(names, (ids.numpy(), feature.numpy()), strict=True)))
        for spec, one, ours, theirs in zip(
            specs, wanted, program.module()(ids, feature), given, strict=True
        ):
            assert torch.equal(ours, one), spec
            assert np.array_equal(theirs, one.numpy()), spec
