"""Equal tuning: every method of a sweep tries the same training settings, before the sweep.

Each data set, method and model of a sweep is run once with every setting of the ``[tune]`` table,
at one seed and one size. The setting of the best validation AUC then holds for all its runs. The
tuning runs are ordinary runs in the same folder; where one is a run of the sweep too, it is run
once. The choice depends on their records alone, not on the order in which they end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featemb.benchmarks import records, sources
from featemb.benchmarks.config import RunConfig, refuse_unknown
from featemb.benchmarks.network import build_network
from featemb.benchmarks.run import run_id
from featemb.benchmarks.sweep import sweep
from featemb.budget import free_knobs
from featemb.errors import BudgetError, ConfigError, nearest

# What a [tune] table may try: settings of training that leave width, data and place alone.
TUNABLE = (
    *("lr", "weight_decay", "net_weight_decay", "batch_size", "optimizer"),
    *("epochs", "patience", "lr_decay", "anneal", "eval_every"),
)
_KEYS = ("seed", "ratio", "model")
Kind = tuple[str, str, str]  # data, method, model


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What every method tries, and where.

    Attributes:
        values: values to try by setting of `RunConfig`; several settings are crossed.
        seed: seed of the tuning runs.
        ratio: their compression ratio; None takes the smallest of the sweep. A method that cannot
            reach it is tuned at the smallest ratio of the sweep that it can reach.
        model: the model that all choices are made with; None chooses for each model by itself.

    Raises:
        ConfigError: nothing is to be tried, a setting or the model is unknown.
    """

    values: Mapping[str, tuple[Any, ...]]
    seed: int = 0
    ratio: float | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Refuse a table that tries nothing."""
        refuse_unknown(self.values, TUNABLE, "[tune]")
        if not self.values:
            raise ConfigError(f"[tune] names no setting to try; Allowed: {', '.join(TUNABLE)}")
        for name, values in self.values.items():
            if not isinstance(values, tuple) or len(set(values)) < len(values) or not values:
                raise ConfigError(f"[tune] {name} must be a list of different values: {values!r}")

    @classmethod
    def from_table(cls, table: Any) -> Tuning:
        """Read the ``[tune]`` table of a sweep's file.

        Raises:
            ConfigError: as above, or the table holds an unknown key.
        """
        if not isinstance(table, dict):
            raise ConfigError(f"[tune] must be a table, got {table!r}")
        refuse_unknown(table, (*TUNABLE, *_KEYS), "[tune]")
        values = {name: table[name] for name in table if name not in _KEYS}
        for name, entry in values.items():
            if not isinstance(entry, list):
                raise ConfigError(f"[tune] {name} must be a list of values, got {entry!r}")
        settings = {name: table[name] for name in _KEYS if name in table}
        return cls(values={name: tuple(entry) for name, entry in values.items()}, **settings)

    def check_free(self, settings: Iterable[str], where: str) -> None:
        """Refuse a table that sets what is tuned: one of the two would be ignored.

        Raises:
            ConfigError: names the setting.
        """
        for name in settings:
            if name in self.values:
                raise ConfigError(f"{where} sets {name!r}, which [tune] tries: leave one of them")

    def candidates(self) -> tuple[dict[str, Any], ...]:
        """Return the settings to try, in the order of the file."""
        crossed = itertools.product(*self.values.values())
        return tuple(dict(zip(self.values, one, strict=True)) for one in crossed)


@dataclass(frozen=True)
class Question:
    """One choice to make.

    Attributes:
        kind: data, method and model of the tuning runs.
        base: a run of this kind; its settings hold where nothing can be chosen.
        candidates: the settings to try.
        trials: the tuning runs, one a candidate; none where no size of the sweep can be reached.
    """

    kind: Kind
    base: RunConfig
    candidates: tuple[Mapping[str, Any], ...]
    trials: tuple[RunConfig, ...]


@dataclass(frozen=True)
class Choice:
    """One choice made.

    Attributes:
        question: what was tried.
        scores: validation AUC of each trial's frozen network, or why there is none.
        chosen: the settings of the best one, the first of equal ones; those of the sweep's file
            where no trial has a score.
    """

    question: Question
    scores: tuple[float | str, ...]
    chosen: Mapping[str, Any]


def plan(configs: Sequence[RunConfig], tuning: Tuning) -> list[Question]:
    """Return the choices that a sweep needs, in its order.

    Raises:
        ConfigError: a value is out of range, or the model to tune is not in the sweep.
        DataError: data are missing or malformed.
    """
    known = dict.fromkeys(config.model for config in configs)
    if tuning.model is not None and tuning.model not in known:
        raise ConfigError(
            f"[tune] model {tuning.model!r} is not in the sweep; {nearest(tuning.model, known)}"
        )
    kinds: dict[Kind, list[RunConfig]] = {}
    for config in configs:
        kinds.setdefault((config.data, config.method, config.model), []).append(config)
    asked = dict.fromkeys(_asked(kind, kinds, tuning) for kind in kinds)
    return [_question(kind, kinds[kind], tuning) for kind in asked]


def _asked(kind: Kind, kinds: Mapping[Kind, Any], tuning: Tuning) -> Kind:
    """Return the kind whose choice a kind takes: its own where the sweep lacks the tuned model."""
    data, method, model = kind
    wanted = (data, method, tuning.model or model)
    return wanted if wanted in kinds else kind


def _question(kind: Kind, runs: Sequence[RunConfig], tuning: Tuning) -> Question:
    candidates = tuning.candidates()
    tried = [replace(runs[0], seed=tuning.seed, **values) for values in candidates]
    size = _size(tried[0], runs, tuning)
    trials = () if size is None else tuple(replace(one, **size) for one in tried)
    return Question(kind, runs[0], candidates, trials)


def _size(trial: RunConfig, runs: Sequence[RunConfig], tuning: Tuning) -> dict[str, Any] | None:
    """Return the size to tune at; None where the method reaches none."""
    if not free_knobs(trial.spec):
        return {}  # the method's own
    ratios = sorted({run.ratio for run in runs if run.ratio is not None})
    budgets = sorted({run.budget for run in runs if isinstance(run.budget, int)}, reverse=True)
    wanted = [] if tuning.ratio is None else [tuning.ratio]
    sizes: list[dict[str, Any]] = [{"ratio": one, "budget": None} for one in (*wanted, *ratios)]
    sizes += [{"budget": one, "ratio": None} for one in budgets]
    if not sizes:
        return {}
    dataset = sources.subsample(sources.load(trial), trial.rows, trial.seed)
    for size in sizes:
        try:
            build_network(replace(trial, **size), dataset.schema)
        except BudgetError:
            continue
        return size
    return None


def choices(questions: Iterable[Question], folder: Path) -> list[Choice]:
    """Return the choices that the records of a folder decide; questions with runs to do wait."""
    made = []
    for question in questions:
        names = [run_id(trial) for trial in question.trials]
        if all(records.status(folder, name) is not None for name in names):
            made.append(_choice(question, [records.read(folder / name) for name in names]))
    return made


def _choice(question: Question, found: Sequence[Mapping[str, Any]]) -> Choice:
    scores = tuple(valid_auc(record) for record in found)
    best = float("-inf")
    chosen: Mapping[str, Any] = {
        name: getattr(question.base, name) for name in question.candidates[0]
    }
    for score, values in zip(scores, question.candidates, strict=False):
        if isinstance(score, float) and score > best:
            best, chosen = score, values
    return Choice(question, scores, chosen)


def valid_auc(record: Mapping[str, Any]) -> float | str:
    """Return the validation AUC of the frozen network, which is what gets tested; or why not."""
    if record["status"] == "failed":
        return f"{record['error']['type']}: {record['error']['message']}"
    auc = record["metrics"]["valid"]["auc"]
    return "no AUC: the validation split has one class" if auc is None else float(auc["value"])


def chosen(configs: Sequence[RunConfig], tuning: Tuning, made: Sequence[Choice]) -> list[RunConfig]:
    """Return a sweep's runs with the settings chosen for them; equal runs once.

    Runs that no choice is about stay as they are.
    """
    kinds: dict[Kind, Any] = {(one.data, one.method, one.model): None for one in configs}
    settings = {choice.question.kind: choice.chosen for choice in made}
    found: dict[RunConfig, None] = {}
    for config in configs:
        kind = _asked((config.data, config.method, config.model), kinds, tuning)
        found[replace(config, **settings.get(kind, {}))] = None
    return list(found)


def tune(
    configs: Sequence[RunConfig], tuning: Tuning, folder: str | Path, **options: Any
) -> tuple[list[RunConfig], list[Choice]]:
    """Do the tuning runs that a folder lacks, choose, and write ``tuned.json``.

    Args:
        configs: the sweep's runs.
        tuning: what to try.
        folder: of the runs.
        options: of `featemb.benchmarks.sweep.sweep`.

    Returns:
        The sweep's runs with the settings chosen, and the choices.

    Raises:
        ConfigError, DataError: as `plan`.
        RunError: as `sweep`.
    """
    questions = plan(configs, tuning)
    sweep([trial for question in questions for trial in question.trials], folder, **options)
    made = choices(questions, Path(folder))
    runs = chosen(configs, tuning, made)
    _write(Path(folder), runs, tuning, made)
    return runs, made


def _write(folder: Path, runs: Iterable[RunConfig], tuning: Tuning, made: Iterable[Choice]) -> None:
    """Write the choices, beside those of other sweeps in the folder."""
    before = records.read_tuned(folder)
    entries = [_entry(choice, tuning) for choice in made]
    named = [_name(entry) for entry in entries]
    kept = [entry for entry in before["choices"] if _name(entry) not in named]
    trials = {trial["run_id"] for entry in entries for trial in entry["trials"]}
    aside = (trials | set(before["only_tuning"])) - {run_id(run) for run in runs}
    records.write_tuned(folder, kept + entries, aside)


def _name(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in ("data", "model", "method"))


def _entry(choice: Choice, tuning: Tuning) -> dict[str, Any]:
    question = choice.question
    trials = [
        {
            "run_id": run_id(trial),
            "values": dict(values),
            "valid_auc": score if isinstance(score, float) else None,
            "error": score if isinstance(score, str) else None,
        }
        for trial, values, score in zip(
            question.trials, question.candidates, choice.scores, strict=False
        )
    ]
    first = question.trials[0] if question.trials else None
    return {
        "data": sources.identity(question.base)["data"],
        "model": question.base.model,
        "method": question.base.method,
        "seed": tuning.seed,
        "ratio": first and first.ratio,
        "budget": first and first.budget,
        "trials": trials,
        "chosen": dict(choice.chosen),
    }
