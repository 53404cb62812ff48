"""``paired.json``: the comparisons of a folder, so that they outlive its predictions.

Predictions of a big sweep are large and often left out of what is kept. The file holds every group
of runs against the full table and against the baseline of its size: estimates, raw p-values and the
run ids that they come from. It is only read beside the records that it was made from: other run
ids, or other results in the records, make it stale, which is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featemb.benchmarks.groups import Record, group_runs
from featemb.benchmarks.paired import Estimate
from featemb.benchmarks.pairs import Compared, Pairing, Predictions, changes_of, pairings
from featemb.benchmarks.records import read_all
from featemb.errors import RunError
from featemb.files import replacing

FORMAT = 1
PAIRED = "paired.json"
_METRICS = ("auc", "logloss", "gauc")
_NEAR = 1e-9  # a record's own metrics are computed from the same numbers
Results = dict[Pairing, Compared]


def results(runs_dir: str | Path, found: Iterable[Record]) -> Results:
    """Return the comparisons of a folder's records, from predictions or else from the file.

    Without the file, comparisons whose predictions are gone are left out.

    Raises:
        RunError: the file is needed, and it is stale or not readable.
    """
    records = {record["run_id"]: record for record in found}
    wanted = pairings(group_runs(records.values()))
    source = Predictions(runs_dir)
    stored: Results | None = None
    compared: Results = {}
    for pair in wanted:
        if source.has((*pair.runs, *pair.reference_runs)):
            compared[pair] = source.compare(pair)
            continue
        if stored is None:
            if not (Path(runs_dir) / PAIRED).is_file():
                continue
            stored = read(runs_dir)
            refuse_stale(Path(runs_dir) / PAIRED, stored, wanted, records)
        compared[pair] = stored[pair]
    return compared


def stored_results(runs_dir: str | Path, found: Iterable[Record]) -> Results:
    """Return the comparisons that a folder's file holds of its records; none without a file.

    Raises:
        RunError: the file is stale or not readable.
    """
    if not (Path(runs_dir) / PAIRED).is_file():
        return {}
    records = {record["run_id"]: record for record in found}
    wanted = pairings(group_runs(records.values()))
    stored = read(runs_dir)
    refuse_stale(Path(runs_dir) / PAIRED, stored, wanted, records)
    return stored


def store(runs_dir: str | os.PathLike[str]) -> tuple[Path, Results]:
    """Compare all groups of a folder with their references and write ``paired.json``, atomically.

    A comparison whose predictions are gone is taken over from the file where it is there already.

    Raises:
        RunError: there is nothing to compare, or predictions are missing.
    """
    folder = Path(runs_dir)
    found = read_all(folder).records
    wanted = pairings(group_runs(found.values()))
    if not wanted:
        raise RunError(f"{os.fspath(runs_dir)!r} holds no finished runs with a reference")
    source = Predictions(folder)
    before = read(folder) if (folder / PAIRED).is_file() else {}
    compared: Results = {}
    for pair in wanted:
        if source.has((*pair.runs, *pair.reference_runs)):
            compared[pair] = source.compare(pair)
        elif pair in before:
            _check_values(folder / PAIRED, pair, before[pair], found)
            compared[pair] = before[pair]
        else:
            raise RunError(
                f"{pair.method} at {pair.asked} against {pair.reference}: a run of "
                f"{', '.join((*pair.runs, *pair.reference_runs))} has no predictions"
            )
    write(folder, compared)
    return folder / PAIRED, compared


def find(
    runs_dir: Path, names: Sequence[str], others: Sequence[str], records: Mapping[str, Record]
) -> Compared | None:
    """Return a stored comparison by its run ids, either way round; None where there is none.

    Raises:
        RunError: the file is not readable, or its result is not that of the records.
    """
    if not (runs_dir / PAIRED).is_file():
        return None
    for pair, result in read(runs_dir).items():
        sides = (list(pair.runs), list(pair.reference_runs))
        if sides in ((list(names), list(others)), (list(others), list(names))):
            _check_values(runs_dir / PAIRED, pair, result, records)
            return result if sides[0] == list(names) else result.reversed()
    return None


def write(runs_dir: str | os.PathLike[str], compared: Mapping[Pairing, Compared]) -> None:
    """Write ``paired.json`` atomically."""
    entries = [asdict(pair) | _entry(result) for pair, result in compared.items()]
    text = json.dumps({"format": FORMAT, "comparisons": entries}, indent=1, allow_nan=False)
    with replacing(Path(runs_dir) / PAIRED) as path:
        path.write_text(text + "\n", encoding="utf8")


def _entry(result: Compared) -> dict[str, Any]:
    estimates = {name: getattr(result, name) for name in _METRICS}
    values = {name: one and one.to_dict() for name, one in estimates.items()}
    return values | {"reason": result.reason}


def read(runs_dir: str | os.PathLike[str]) -> Results:
    """Read ``paired.json``.

    Raises:
        RunError: it is not readable, or of another format.
    """
    path = Path(runs_dir) / PAIRED
    try:
        document = json.loads(path.read_text(encoding="utf8"))
        if document["format"] != FORMAT:
            raise RunError(f"{path} has format {document['format']!r}, this version reads {FORMAT}")
        return dict(_read_entry(entry) for entry in document["comparisons"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} does not hold comparisons: {error!r}") from error


def _read_entry(entry: dict[str, Any]) -> tuple[Pairing, Compared]:
    estimates = {
        name: None if entry[name] is None else Estimate.from_dict(entry[name]) for name in _METRICS
    }
    named = {name: entry[name] for name in ("data", "model", "method", "asked", "reference")}
    seeds, runs, others = (tuple(entry[name]) for name in ("seeds", "runs", "reference_runs"))
    pair = Pairing(**named, seeds=seeds, runs=runs, reference_runs=others)
    return pair, Compared(**estimates, reason=entry["reason"])


def refuse_stale(
    path: Path, stored: Results, wanted: Sequence[Pairing], records: Mapping[str, Record]
) -> None:
    """Refuse comparisons that are not those of the records.

    Raises:
        RunError: names the first comparison that is missing, of other runs, or of other results.
    """
    for pair in wanted:
        if pair not in stored:
            raise RunError(
                f"{path} is stale: it does not compare {pair.method} at {pair.asked} with "
                f"{pair.reference} over the runs {', '.join(pair.runs)}; {_AGAIN}"
            )
        _check_values(path, pair, stored[pair], records)
    for pair in set(stored) - set(wanted):
        raise RunError(
            f"{path} is stale: {pair.method} at {pair.asked} over the runs "
            f"{', '.join(pair.runs)} is not in the records; {_AGAIN}"
        )


_AGAIN = "write it again by `featemb compare --all RUNS` where the predictions are, or remove it"


def _check_values(
    path: Path, pair: Pairing, result: Compared, records: Mapping[str, Record]
) -> None:
    """Refuse a comparison that the records' own metrics contradict."""
    for name in ("auc", "logloss"):
        one: Estimate | None = getattr(result, name)
        if one is None:
            continue
        pairs = zip(pair.runs, pair.reference_runs, strict=True)
        changes = [changes_of(records[a], records[b], name) for a, b in pairs]
        if abs(sum(changes) / len(changes) - one.value) > _NEAR:
            raise RunError(
                f"{path} is stale: {name} of {pair.method} at {pair.asked} against "
                f"{pair.reference} is not that of the records; {_AGAIN}"
            )
