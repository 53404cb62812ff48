"""Synthetic clicks over days whose ids enter and leave, with the best AUC known for every day."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featemb.datasets.dataset import Dataset, Split
from featemb.datasets.recipe import PARTS
from featemb.datasets.registry import built
from featemb.datasets.synthetic import expected_auc
from featemb.errors import DataError
from featemb.schema import Feature, Schema


@dataclass(frozen=True)
class Days:
    """Rows by day.

    Attributes:
        ids: of each day int64 ``[n, F]``; a feature's ids are numbered from 1 as they enter.
        label: of each day float32 ``[n]``.
        chance: of each day, the true probabilities.
        cardinality: ids of each feature over all days, with id 0, which does not occur.
        settings: what they were made with.
    """

    ids: tuple[npt.NDArray[np.int64], ...]
    label: tuple[npt.NDArray[np.float32], ...]
    chance: tuple[npt.NDArray[np.float64], ...]
    cardinality: int
    settings: str

    @property
    def best_auc(self) -> tuple[float, ...]:
        """AUC of the true probabilities of each day, expected over labels."""
        return tuple(expected_auc(chance) for chance in self.chance)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings and rows."""
        digest = hashlib.sha256(self.settings.encode())
        for ids, label in zip(self.ids, self.label, strict=True):
            digest.update(ids.tobytes() + label.tobytes())
        return digest.hexdigest()


def drifting_days(
    rows: int = 100_000,
    days: int = 10,
    features: int = 6,
    ids: int = 2000,
    turnover: float = 0.1,
    zipf: float = 1.0,
    signal: float = 1.5,
    base: float = -1.0,
    seed: int = 0,
) -> Days:
    """Make days of rows; ``logit = base + sum_f w_f[id]`` with normal weights.

    A feature has ``ids`` places, drawn by a Zipf law. At the beginning of each day but the first, a
    share ``turnover`` of them, chosen at random, is taken over by ids that were never seen before,
    with weights of their own: these enter as popular or rare ones, those that were there leave for
    good.

    Args:
        rows: rows of all days.
        days: number of days.
        features: number of features.
        ids: ids of a feature that live at a time.
        turnover: share of them that is replaced at the beginning of a day.
        zipf: exponent; 0 makes all equally likely.
        signal: standard deviation of the logit over ids drawn equally often.
        base: logit of a row without signal.
        seed: the one source of randomness.

    Raises:
        DataError: an argument is out of range.
    """
    if days < 1 or rows < 10 * days or features < 1 or ids < 2 or not math.isfinite(base):
        raise DataError(f"out of range: {rows=} >= 10 days, {days=}, {features=}, {ids=} >= 2")
    if not 0 <= turnover <= 1 or not 0 <= zipf < 20 or not 0 <= signal < 100:
        raise DataError(f"out of range: {turnover=} in [0, 1], {zipf=} >= 0, {signal=} >= 0")
    random = np.random.default_rng(seed)
    cumulative = np.cumsum(np.arange(1, ids + 1, dtype=np.float64) ** -zipf)
    places = np.tile(np.arange(1, ids + 1), (features, 1))
    scale = signal / math.sqrt(features)
    weights = scale * random.normal(size=(features, ids))
    entering = round(turnover * ids)
    found_ids, found_label, found_chance = [], [], []
    for day in range(days):
        if day:
            for f in range(features):
                gone = random.permutation(ids)[:entering]
                places[f, gone] = ids + (day - 1) * entering + np.arange(1, entering + 1)
                weights[f, gone] = scale * random.normal(size=entering)
        count = rows * (day + 1) // days - rows * day // days
        drawn = np.searchsorted(cumulative, random.random((features, count)) * cumulative[-1])
        drawn = np.minimum(drawn, ids - 1)
        logit = base + np.take_along_axis(weights, drawn, 1).sum(0)
        chance = 1 / (1 + np.exp(-logit))
        found_chance.append(chance)
        found_ids.append(np.ascontiguousarray(np.take_along_axis(places, drawn, 1).T))
        found_label.append((random.random(count) < chance).astype(np.float32))
    cardinality = ids + (days - 1) * entering + 1
    settings = f"{rows=},{days=},{features=},{ids=},{turnover=},{zipf=},{signal=},{base=},{seed=}"
    return Days(tuple(found_ids), tuple(found_label), tuple(found_chance), cardinality, settings)


@built("drifting")
def drifting(
    rows: int = 100_000,
    days: int = 10,
    features: int = 6,
    ids: int = 2000,
    turnover: float = 0.1,
    zipf: float = 1.0,
    signal: float = 1.5,
    base: float = -1.0,
    seed: int = 0,
) -> Dataset:
    """Synthetic clicks over days whose ids enter and leave; label: drawn from a known probability.

    The days of `drifting_days` (and its arguments), in order of time: first 80% train, 10%
    validation, 10% test. The AUC of the true probabilities of the test rows is in
    ``meta["bayes_auc"]``, that of each day in ``meta["bayes_auc_by_day"]``.

    Raises:
        DataError: an argument is out of range.
    """
    made = drifting_days(rows, days, features, ids, turnover, zipf, signal, base, seed)
    whole, label = np.concatenate(made.ids), np.concatenate(made.label)
    ends = [round(rows * 0.8), round(rows * 0.9)]
    splits = {
        part: Split(torch.from_numpy(label[piece]), torch.from_numpy(whole[piece]).int())
        for part, piece in zip(PARTS, np.split(np.arange(rows), ends), strict=True)
    }
    schema = Schema(
        Feature(
            f"f{f}",
            made.cardinality,
            counts=np.bincount(whole[: ends[0], f], minlength=made.cardinality),
        )
        for f in range(features)
    )
    meta = {
        "summary": "synthetic clicks over days whose ids enter and leave",
        "terms": "none: made by this package; for tests of drift, never for claims of accuracy",
        "protocol": "in order of time, the first 80% train, 10% validation, 10% test",
        "settings": made.settings,
        "bayes_auc": expected_auc(np.concatenate(made.chance)[ends[1] :]),
        "bayes_auc_by_day": list(made.best_auc),
        "user": None,
    }
    return Dataset("drifting", schema, splits, made.fingerprint, meta)
