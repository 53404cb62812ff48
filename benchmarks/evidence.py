"""What runs that were measured say of sizes that are planned: expected loss of AUC, and how sure.

The loss of a method at a ratio is the full table's test AUC minus the method's, of the same data,
model, width and seed. Between two measured ratios it is interpolated linearly in log(ratio), and so
are the ends of its 95% interval. Beyond them the last slope goes on, without an interval, and
promises no gain that was not measured: such a number is a guess, is called extrapolated and ranks
behind what was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats as scipy_stats

from featemb.benchmarks.grid import REFERENCE
from featemb.benchmarks.groups import Group, Record, group_runs, reference_of
from featemb.benchmarks.metrics import variance_of_mean
from featemb.benchmarks.pairs import Compared, changes_of
from featemb.benchmarks.records import read_all
from featemb.benchmarks.stored_pairs import stored_results
from featemb.errors import RunError, nearest
from featemb.spec import parse

if TYPE_CHECKING:
    import pandas as pd

_SAME = 1.02  # ratios within 2% are the same size
_FEW = 3  # seeds that show how much training varies
BETWEEN = "; "  # the notes of several data sets and models
_ORDER = ("measured", "interpolated", "extrapolated", "no evidence")
Place = tuple[str, str]  # data set and model


@dataclass(frozen=True)
class Point:
    """A method at one measured size.

    Attributes:
        ratio: bytes of the full table / serving bytes.
        loss: full table's test AUC minus the method's, mean over seeds.
        low: lower end of its 95% interval: of the paired comparison where ``paired.json`` holds it;
            else Student's t over three seeds or more, or of the test rows alone.
        high: upper end.
        seeds: number of seeds.
    """

    ratio: float
    loss: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Expected:
    """What is expected of a size.

    Attributes:
        loss: expected loss of test AUC, or None without evidence.
        low: lower end of its 95% interval, or None.
        high: upper end, or None.
        basis: "measured", "interpolated", "extrapolated" or "no evidence".
        note: of how many seeds, how far beyond what was measured, and where.
    """

    loss: float | None
    low: float | None
    high: float | None
    basis: str
    note: str


def curves(
    runs: Sequence[str | Path], data: str | None = None, model: str | None = None
) -> dict[Place, dict[str, list[Point]]]:
    """Return each method's points by ratio, for each data set and model.

    Args:
        runs: folders of runs.
        data: this data set alone.
        model: this model alone.

    Raises:
        RunError: a folder is missing, or holds no run of this data set and model with a full table
            beside it.
    """
    found: dict[Place, dict[tuple[str, str], Point]] = {}
    records: dict[str, Record] = {}
    paired: dict[tuple[str, ...], Compared] = {}
    for folder in runs:
        own = read_all(folder).records
        records |= own
        for pair, compared in stored_results(folder, own.values()).items():
            if pair.reference == REFERENCE:
                paired[pair.runs] = compared
    groups = group_runs(records.values())
    for group in groups:
        full = reference_of(group, REFERENCE, groups)
        if full is None or data not in (None, group.data) or model not in (None, group.model):
            continue
        sizes = found.setdefault((group.data, group.model), {})
        key = (without_size(group.method), group.asked)
        point = _point(group, full, paired.get(group.names(group.shared_seeds(full))))
        # of the same size with several settings, what most seeds show
        if key not in sizes or sizes[key].seeds < point.seeds:
            sizes[key] = point
    if not found:
        names = {f"{group.data}, {group.model}" for group in groups} or {"nothing"}
        asked = f"{data or 'any data set'}, {model or 'any model'}"
        raise RunError(f"no run to judge {asked} by; {nearest(asked, names)}")
    return {place: _by_method(sizes) for place, sizes in found.items()}


def _by_method(sizes: Mapping[tuple[str, str], Point]) -> dict[str, list[Point]]:
    methods: dict[str, list[Point]] = {}
    for (method, _), point in sorted(sizes.items(), key=lambda item: item[1].ratio):
        methods.setdefault(method, []).append(point)
    return methods


def _point(group: Group, full: Group, compared: Compared | None) -> Point:
    paired = None if compared is None else compared.auc
    if paired is not None:
        return Point(_ratio(group), -paired.value, -paired.high, -paired.low, paired.seeds)
    seeds = group.shared_seeds(full)
    runs = [group.runs[seed] for seed in seeds]
    values = np.array([-changes_of(group.runs[s], full.runs[s], "auc") for s in seeds])
    loss = float(values.mean())
    if len(values) >= _FEW:
        error = math.sqrt(variance_of_mean(values))
        reach = float(scipy_stats.t.ppf(0.975, len(values) - 1)) * error
    else:
        intervals = [run["metrics"]["test"]["auc"] for run in runs]
        reach = max(one["high"] - one["low"] for one in intervals) / 2
    return Point(_ratio(group), loss, loss - reach, loss + reach, len(values))


def _ratio(group: Group) -> float:
    """Return the geometric mean of the runs' ratios."""
    return statistics.geometric_mean(run["bytes"]["ratio"] for run in group.runs.values())


def without_size(text: str) -> str:
    """Return a spec without the sizes that a budget would solve.

    Raises:
        ConfigError: the text is no spec.
    """
    spec = parse(text)
    methods = [replace(one, **{one.knob: None}) if one.knob else one for one in spec.methods]
    return str(spec.with_methods(methods))


def expect(points: Sequence[Point], ratio: float) -> Expected:
    """Return what a method's measured points say of a ratio.

    Args:
        points: of one data set and model, by ascending ratio; may be none.
        ratio: bytes of the full table / serving bytes.
    """
    if not points:
        return Expected(None, None, None, "no evidence", "")
    near = min(points, key=lambda point: abs(math.log(point.ratio / ratio)))
    if max(near.ratio / ratio, ratio / near.ratio) <= _SAME:
        return Expected(near.loss, near.low, near.high, "measured", _seeds([near]))
    where = np.log([point.ratio for point in points])
    at = math.log(ratio)
    if where[0] < at < where[-1]:
        loss, low, high = (
            float(np.interp(at, where, [getattr(point, name) for point in points]))
            for name in ("loss", "low", "high")
        )
        right = int(np.searchsorted(where, at))
        note = f"between {points[right - 1].ratio:.3g}x and {points[right].ratio:.3g}x, "
        return Expected(
            loss, low, high, "interpolated", note + _seeds(points[right - 1 : right + 1])
        )
    return _beyond(points, ratio)


def _beyond(points: Sequence[Point], ratio: float) -> Expected:
    """Go on with the slope of the two points at an end; a loss does not fall with compression."""
    above = ratio > points[-1].ratio
    pair = points[-2:] if above else points[:2]
    end = points[-1] if above else points[0]
    slope = 0.0
    if len(pair) == 2 and pair[0].ratio < pair[1].ratio:
        slope = max(0.0, (pair[1].loss - pair[0].loss) / math.log(pair[1].ratio / pair[0].ratio))
    loss = max(end.loss + slope * math.log(ratio / end.ratio), min(0.0, end.loss))
    far = max(ratio / end.ratio, end.ratio / ratio)
    note = f"{far:.3g} times {'above' if above else 'below'} {end.ratio:.3g}x, {_seeds([end])}"
    return Expected(loss, None, None, "extrapolated", note)


def _seeds(points: Sequence[Point]) -> str:
    fewest = min(point.seeds for point in points)
    few = ": training noise not counted" if fewest < _FEW else ""
    return f"{fewest} seed{'s' * (fewest > 1)}{few}"


def combine(found: Mapping[Place, Expected]) -> Expected:
    """Join what several data sets and models say: mean loss, widest interval, weakest basis."""
    known = {group: one for group, one in found.items() if one.loss is not None}
    if not known:
        return Expected(None, None, None, "no evidence", "")
    losses = [one.loss for one in known.values() if one.loss is not None]
    lows = [one.low for one in known.values()]
    highs = [one.high for one in known.values()]
    sure = None not in lows and None not in highs
    return Expected(
        sum(losses) / len(losses),
        min(one for one in lows if one is not None) if sure else None,
        max(one for one in highs if one is not None) if sure else None,
        max((one.basis for one in known.values()), key=_ORDER.index),
        BETWEEN.join(f"{'/'.join(group)}: {one.note}" for group, one in known.items()),
    )


def rank(
    frame: pd.DataFrame,
    runs: Sequence[str | Path],
    data: str | None = None,
    model: str | None = None,
) -> pd.DataFrame:
    """Add what is expected of each planned row, and sort by it.

    Args:
        frame: what `featemb.plan` gives.
        runs: folders of runs.
        data: judge by this data set alone.
        model: judge by this model alone.

    Returns:
        The frame with the columns auc_loss, loss_low, loss_high, basis and evidence: those that fit
        first, of them those between measured sizes by their loss, then those beyond, then those
        without evidence.

    Raises:
        RunError: as `curves`.
    """
    import pandas as pd

    found = curves(runs, data, model)
    expected = [_expected(row, found) for _, row in frame.iterrows()]
    ranked = frame.assign(
        auc_loss=pd.Series([one.loss for one in expected], frame.index, float),
        loss_low=pd.Series([one.low for one in expected], frame.index, float),
        loss_high=pd.Series([one.high for one in expected], frame.index, float),
        basis=[one.basis for one in expected],
        evidence=[one.note for one in expected],
    )
    order = sorted(range(len(ranked)), key=lambda i: _place(bool(frame.fits.iloc[i]), expected[i]))
    return ranked.iloc[order].reset_index(drop=True)


def _expected(row: Any, found: Mapping[Place, Mapping[str, list[Point]]]) -> Expected:
    if not row.fits or row.ratio is None or math.isnan(row.ratio):
        return Expected(None, None, None, "no evidence", "")
    method = without_size(row.method)
    if method == REFERENCE:
        return Expected(0.0, 0.0, 0.0, "measured", "the reference")
    return combine({group: expect(found[group].get(method, []), row.ratio) for group in found})


def _place(fits: bool, expected: Expected) -> tuple[bool, int, float]:
    beyond = max(0, _ORDER.index(expected.basis) - 1)
    return not fits, beyond, math.inf if expected.loss is None else expected.loss
