"""Quality and portability of the seeded hashes (their formula: tests/test_methods.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

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
