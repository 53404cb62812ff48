"""Synthetic clicks with a known best AUC: for tests of scale, never for claims of accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from featemb.datasets.dataset import Dataset, Split
from featemb.datasets.recipe import PARTS
from featemb.datasets.registry import built
from featemb.errors import DataError
from featemb.schema import Feature, Schema

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@built("synthetic")
def synthetic(
    rows: int = 10_000,
    cardinalities: Sequence[int] = (1000, 300, 50, 7),
    zipf: float = 1.1,
    drift: float = 0.0,
    signal: float = 1.0,
    signal_share: float = 1.0,
    signal_on: str = "random",
    weights: str = "normal",
    base: float = -1.0,
    seed: int = 0,
) -> Dataset:
    """Make a data set whose label is Bernoulli with a logistic ground truth.

    Feature f's ids follow a Zipf law over its ids; ``logit = base + sum_f w_f[id]``, with random
    weights of mean 0. Rows are in time order: first 80% train, then 10% validation, 10% test. The
    AUC and LogLoss of the true probabilities on the test rows, expected over labels, are in
    ``meta["bayes_auc"]`` and ``meta["bayes_logloss"]``. Ids that do not occur in training keep
    their id, so that cardinalities are exactly those asked for.

    Args:
        rows: number of rows.
        cardinalities: ids of each feature, with id 0 for unknown, which does not occur.
        zipf: exponent; 0 makes all ids equally likely.
        drift: share of each feature's ids by which the popular ids move on from first to last row.
        signal: standard deviation of the logit.
        signal_share: share of each feature's ids that have a weight at all; 0 leaves a constant
            probability.
        signal_on: which ids these are: "random" ones, or the most "frequent" ones (before a drift).
        weights: "normal", or "signs": all as large as each other, and plus or minus.
        base: logit of a row without signal.
        seed: the one source of randomness.

    Raises:
        DataError: an argument is out of range.
    """
    _check(rows, cardinalities, zipf, drift, signal_share)
    _check_words(signal_on, weights)
    random = np.random.default_rng(seed)
    ids = np.stack([_draw(random, rows, n, zipf, drift) for n in cardinalities], axis=1)
    logit = np.full(rows, base, np.float64)
    scale = signal / np.sqrt(len(cardinalities) * signal_share) if signal_share else 0.0
    for f, n in enumerate(cardinalities):
        weight = random.normal(size=n)
        weight = scale * (np.sign(weight) if weights == "signs" else weight)
        chosen = random.random(n) < signal_share
        if signal_on == "frequent":
            chosen = np.arange(n) <= round(signal_share * (n - 1))
        logit += (weight * chosen)[ids[:, f]]
    chance = 1 / (1 + np.exp(-logit))
    settings = (
        f"rows={rows},{tuple(cardinalities)},{zipf},{drift},{signal},{signal_share},{base},{seed}"
    )
    if (signal_on, weights) != ("random", "normal"):
        settings += f",{signal_on},{weights}"
    label = (random.random(rows) < chance).astype(np.float32)
    return _dataset(ids, cardinalities, chance, label, settings)


def _check(
    rows: int, cardinalities: Sequence[int], zipf: float, drift: float, signal_share: float
) -> None:
    if len(cardinalities) == 0 or rows < 10 or min(cardinalities, default=0) < 2:
        raise DataError(f"rows must be >= 10 and cardinalities >= 2, got {rows}, {cardinalities}")
    if not 0 <= signal_share <= 1 or not zipf >= 0 or not 0 <= drift <= 1:
        raise DataError(
            f"out of range: {signal_share=} in [0, 1], {zipf=} >= 0, {drift=} in [0, 1]"
        )


def _check_words(signal_on: str, weights: str) -> None:
    for name, value, words in (
        ("signal_on", signal_on, ("random", "frequent")),
        ("weights", weights, ("normal", "signs")),
    ):
        if value not in words:
            raise DataError(f"{name} must be {' or '.join(words)}, got {value!r}")


def _dataset(
    ids: Ids, cardinalities: Sequence[int], chance: Floats, label: Labels, settings: str
) -> Dataset:
    rows = len(ids)
    ends = [round(rows * 0.8), round(rows * 0.9)]
    splits = {
        part: Split(torch.from_numpy(label[piece]), torch.from_numpy(ids[piece]).int())
        for part, piece in zip(PARTS, np.split(np.arange(rows), ends), strict=True)
    }
    schema = Schema(
        Feature(f"f{f}", n, counts=np.bincount(ids[: ends[0], f], minlength=n))
        for f, n in enumerate(cardinalities)
    )
    test = chance[ends[1] :]
    meta = {
        "summary": "synthetic clicks; label: drawn from a known probability",
        "terms": "none: made by this package; for tests of scale, never for claims of accuracy",
        "protocol": "in order of time, the first 80% train, 10% validation, 10% test",
        "settings": settings,
        "bayes_auc": expected_auc(test),
        "bayes_logloss": float(-(test * np.log(test) + (1 - test) * np.log1p(-test)).mean()),
        "user": None,
    }
    digest = hashlib.sha256(settings.encode() + ids.tobytes() + label.tobytes()).hexdigest()
    return Dataset("synthetic", schema, splits, digest, meta)


def _draw(
    random: np.random.Generator, rows: int, cardinality: int, zipf: float, drift: float
) -> Ids:
    """Draw ids 1 .. cardinality - 1 of a Zipf law whose ranking moves on over the rows."""
    most = cardinality - 1
    weights = np.arange(1, most + 1, dtype=np.float64) ** -zipf
    cumulative = np.cumsum(weights / weights.sum())
    rank = np.minimum(np.searchsorted(cumulative, random.random(rows)), most - 1)
    moved = (np.arange(rows) * (drift * most / rows)).astype(np.int64)
    return (rank + moved) % most + 1


def expected_auc(chance: Floats) -> float:
    """AUC of the true probabilities, expected over labels drawn from them.

    With scores equal to chances p, the chance that a random positive outranks a random negative
    is ``sum_{i, j} p_i (1 - p_j) [p_i > p_j] / sum_{i != j} p_i (1 - p_j)``, ties counting half.
    """
    ordered = np.sort(chance)
    values, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    negatives = np.concatenate([[0.0], np.cumsum(1 - ordered)])
    below = negatives[first]
    tied = counts * (1 - values)
    wins = float((counts * values * (below + 0.5 * tied)).sum())
    # a row is never paired with itself
    wins -= 0.5 * float((ordered * (1 - ordered)).sum())
    pairs = float(ordered.sum() * (1 - ordered).sum() - (ordered * (1 - ordered)).sum())
    return wins / pairs
