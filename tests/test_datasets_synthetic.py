"""Synthetic clicks: a law of ids, a drift and a best AUC that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from featemb.datasets import load, synthetic
from featemb.datasets.synthetic import expected_auc
from featemb.errors import DataError


def test_expected_auc_equals_the_mean_over_labels() -> None:
    random = np.random.default_rng(0)
    chance = np.round(random.beta(1, 3, 300), 2).clip(0.01, 0.99)  # with ties
    pairs = chance[:, None] * (1 - chance[None, :])
    np.fill_diagonal(pairs, 0)
    wins = (chance[:, None] > chance[None, :]) + 0.5 * (chance[:, None] == chance[None, :])
    assert expected_auc(chance) == pytest.approx((pairs * wins).sum() / pairs.sum(), abs=1e-12)
    drawn = [roc_auc_score(random.random(300) < chance, chance) for _ in range(300)]
    assert expected_auc(chance) == pytest.approx(np.mean(drawn), abs=0.008)


def test_no_signal_is_a_coin() -> None:
    data = synthetic(rows=2000, signal_share=0.0)
    assert data.meta["bayes_auc"] == pytest.approx(0.5)


def test_ids_follow_zipf() -> None:
    data = synthetic(rows=200_000, cardinalities=[1001], zipf=1.5, seed=1)
    counts = data.schema.features[0].counts
    assert counts is not None
    assert counts[0] == 0
    share = np.arange(1, 1001) ** -1.5
    np.testing.assert_allclose(counts[1:6] / counts.sum(), (share / share.sum())[:5], rtol=0.05)
    assert counts.sum() == 160_000


def test_drift_moves_the_popular_ids() -> None:
    def most_common(drift: float) -> tuple[int, int]:
        data = synthetic(rows=50_000, cardinalities=[501], zipf=1.5, drift=drift)
        return tuple(int(data.splits[p].ids.mode(0).values) for p in ("train", "test"))  # type: ignore[union-attr,return-value]

    assert most_common(0.0) == (1, 1)
    assert abs(np.subtract(*most_common(0.5))) > 50


def test_name_seed_and_fingerprint() -> None:
    one = load("synthetic", rows=1000, cardinalities=[50, 20], seed=3)
    same = synthetic(rows=1000, cardinalities=[50, 20], seed=3)
    other = synthetic(rows=1000, cardinalities=[50, 20], seed=4)
    assert one.schema.cardinalities == (50, 20)
    assert [len(one.splits[part]) for part in ("train", "valid", "test")] == [800, 100, 100]
    assert torch.equal(one.splits["test"].ids, same.splits["test"].ids)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert 0.5 < one.meta["bayes_auc"] < 1
    assert 0 < one.meta["bayes_logloss"] < 1


def test_best_auc_is_reached_by_the_truth_only() -> None:
    """The label's realised AUC under the true probability is near the stated one."""
    data = synthetic(rows=300_000, cardinalities=[200, 100], signal=2.0, seed=5)
    train, test = data.splits["train"], data.splits["test"]
    # enough rows an id for smoothed rates of id pairs to come near the truth
    pair_train = (train.ids[:, 0] * 100 + train.ids[:, 1]).numpy()
    pair_test = (test.ids[:, 0] * 100 + test.ids[:, 1]).numpy()
    clicks = np.bincount(pair_train, train.label.numpy(), 20_000)
    rate = (clicks + 0.3) / (np.bincount(pair_train, minlength=20_000) + 1)
    reached = roc_auc_score(test.label.numpy(), rate[pair_test])
    assert data.meta["bayes_auc"] - 0.05 < reached < data.meta["bayes_auc"] + 0.005


@pytest.mark.parametrize(
    "settings",
    [
        {"rows": 5},
        {"cardinalities": []},
        {"cardinalities": [1]},
        {"zipf": -1.0},
        {"drift": 2.0},
        {"signal_share": 1.5},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        synthetic(**settings)


def test_unknown_option() -> None:
    with pytest.raises(DataError, match="did you mean 'zipf'"):
        load("synthetic", zip=1.0)
