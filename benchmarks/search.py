"""`search`: the best settings of a run at a fixed size, by validation AUC, with Optuna.

Every trial is an ordinary run in the folder: equal settings are run once, whoever asked for them.
The study (Akiba et al., KDD 2019) lies in the folder too, so that a killed search goes on. What is
tried next follows from the seed and the trials so far alone: a search that was killed ends as one
that was not.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featemb.benchmarks import records
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.progress import Quiet, Watcher
from featemb.benchmarks.protocol import valid_auc
from featemb.benchmarks.run import run_id
from featemb.benchmarks.space import Space
from featemb.benchmarks.study import Plan, distribution, load_optuna, storage, study_name
from featemb.benchmarks.sweep import sweep
from featemb.errors import ConfigError, RunError

if TYPE_CHECKING:
    import optuna

_ENOUGH = 10  # trials from which the importance of a knob means something
_REPEATS = 20  # times in a row that a sampler may ask for what was tried, before it has ended


class _Stop(BaseException):
    """Ends a run that is below the median; no run's error handling may take it for a failure."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        values: by knob.
        run: run id; None where the values make no run.
        auc: validation AUC of the frozen network, or None.
        reason: why there is none.
    """

    values: Mapping[str, Any]
    run: str | None
    auc: float | None
    reason: str = ""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: different settings, in the order they were tried.
        best: settings of the best run, or None where every trial failed.
        record: its record, or None.
        importance: share of each knob in what decides whether a trial is among the best tenth
            (PED-ANOVA, Watanabe et al., IJCAI 2023); empty with fewer than 10 trials.
    """

    trials: tuple[Trial, ...]
    best: RunConfig | None
    record: Mapping[str, Any] | None
    importance: Mapping[str, float] = field(default_factory=dict)


def search(space: Space, plan: Plan, folder: str | Path, progress: Watcher | None = None) -> Found:
    """Search a space; trials that the folder holds are not run again.

    Args:
        space: the run and its knobs.
        plan: how to search.
        folder: of the runs and of the study.
        progress: told of the runs' events, with validation AUC for test AUC.

    Raises:
        ConfigError: Optuna is not installed.
        DataError: data are missing or malformed.
        RunError: another process searches the same here, or a worker process died.
    """
    optuna = load_optuna()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = study_name(space, plan)
    with records.lock(place, name) as held:
        if not held:
            raise RunError(f"another process is doing this search in {place}")
        study = optuna.create_study(
            storage=storage(place),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if plan.prune else optuna.pruners.NopPruner(),
        )
        return _Searcher(space, plan, place, study, progress or Quiet()).run()


class _Searcher:
    """One search: asks for settings, runs them, tells what came of them."""

    def __init__(
        self, space: Space, plan: Plan, folder: Path, study: optuna.Study, watch: Watcher
    ) -> None:
        import optuna

        self.space, self.plan, self.folder, self.study = space, plan, folder, study
        self.watch = watch
        self.optuna = optuna
        self.ranges = {knob.name: distribution(knob) for knob in space.knobs}

    def run(self) -> Found:
        """Search to the end."""
        began, repeats = time.monotonic(), 0
        self._go_on()
        while repeats < _REPEATS:
            left = self.plan.trials - len(self._tried())
            if left <= 0:
                break
            if self.plan.timeout is not None and time.monotonic() - began > self.plan.timeout:
                break
            before = len(self._tried())
            batch = [self._ask() for _ in range(min(left, self.plan.jobs))]
            asked = [trial for trial in batch if trial is not None]
            if not asked:
                break
            self._do({trial.number: trial.params for trial in asked}, asked)
            repeats = 0 if len(self._tried()) > before else repeats + 1
        return self._found()

    def _go_on(self) -> None:
        """Finish the trials that were under way when a search was killed."""
        running = {
            trial.number: trial.params
            for trial in self.study.trials
            if trial.state == self.optuna.trial.TrialState.RUNNING
        }
        whole = {n: values for n, values in running.items() if values.keys() == self.ranges.keys()}
        for number in running.keys() - whole.keys():  # killed while it was chosen
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)
        self._do(whole, [])

    def _ask(self) -> optuna.Trial | None:
        """Choose settings; a sampler of its own for each trial, so that no state is lost."""
        samplers = self.optuna.samplers
        number = len(self.study.trials)
        if self.plan.sampler == "grid":
            values = next(itertools.islice(self.space.grid(self.plan.seed), number, None), None)
            if values is None:
                return None
            self.study.enqueue_trial(values)
        elif number == 0:
            self.study.enqueue_trial(self.space.start())
        seed = self.plan.seed * 10_007 + number
        random = self.plan.sampler != "tpe"
        self.study.sampler = (
            samplers.RandomSampler(seed=seed) if random else samplers.TPESampler(seed=seed)
        )
        return self.study.ask(self.ranges)

    def _do(self, values: Mapping[int, Mapping[str, Any]], asked: Sequence[optuna.Trial]) -> None:
        """Do the runs of some trials and tell the study, in the trials' order."""
        configs: dict[int, RunConfig] = {}
        for number, one in values.items():
            try:
                configs[number] = self.space.config(one)
            except ConfigError as error:
                self.watch({"event": "skip", "run_id": _text(one), "reason": str(error)})
        with contextlib.suppress(_Stop):
            sweep(
                configs.values(),
                self.folder,
                jobs=self.plan.jobs,
                progress=_Events(self, configs, values, asked),
                checkpoint=self.plan.checkpoint,
            )
        states = self.optuna.trial.TrialState
        for number in sorted(values):
            auc = self.outcome(values[number]).auc
            if auc is None:
                self.study.tell(number, state=states.PRUNED)
            else:
                self.study.tell(number, auc)

    def outcome(self, values: Mapping[str, Any]) -> Trial:
        """Read what came of some settings."""
        try:
            config = self.space.config(values)
        except ConfigError as error:
            return Trial(values, None, None, str(error))
        name = run_id(config)
        if records.status(self.folder, name) is None:
            return Trial(values, name, None, "stopped early: below the median")
        result = valid_auc(records.read(self.folder / name))
        if isinstance(result, str):
            return Trial(values, name, None, result)
        return Trial(values, name, result)

    def _tried(self) -> dict[str, Mapping[str, Any]]:
        """Return the different settings that are finished."""
        states = self.optuna.trial.TrialState
        tried: dict[str, Mapping[str, Any]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state in (states.COMPLETE, states.PRUNED):
                rounded = {
                    knob.name: knob.rounded(trial.params[knob.name]) for knob in self.space.knobs
                }
                tried.setdefault(_text(rounded), rounded)
        return tried

    def _found(self) -> Found:
        trials = tuple(self.outcome(values) for values in self._tried().values())
        scored = [trial for trial in trials if trial.auc is not None]
        if not scored:
            return Found(trials, None, None)
        best = max(scored, key=lambda trial: trial.auc or 0.0)
        record = records.read(self.folder / str(best.run))
        return Found(trials, self.space.config(best.values), record, self._importance(scored))

    def _importance(self, scored: Sequence[Trial]) -> dict[str, float]:
        if len(scored) < _ENOUGH or len({trial.auc for trial in scored}) == 1:
            return {}
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        return dict(self.optuna.importance.get_param_importances(self.study, evaluator=evaluator))


class _Events:
    """Passes the runs' events on, with validation AUC for test AUC, and stops poor runs."""

    def __init__(
        self,
        searcher: _Searcher,
        configs: Mapping[int, RunConfig],
        values: Mapping[int, Mapping[str, Any]],
        asked: Sequence[optuna.Trial],
    ) -> None:
        self.searcher = searcher
        self.values = {run_id(config): values[number] for number, config in configs.items()}
        live = {trial.number: trial for trial in asked}
        self.live = {run_id(c): live[number] for number, c in configs.items() if number in live}
        self.seen = 0

    def __call__(self, event: dict[str, Any]) -> None:
        """Pass an event on."""
        name = event["run_id"]
        if event["event"] in ("end", "skip"):
            trial = self.searcher.outcome(self.values[name])
            told = trial.reason if trial.auc is None else f"valid AUC {trial.auc:.5f}"
            event = {"event": "end", "run_id": name, "message": f"{told}: {_text(trial.values)}"}
        self.searcher.watch(event)
        if event["event"] == "epoch" and self.searcher.plan.prune and name in self.live:
            self.seen += 1
            trial_now = self.live[name]
            if event["valid_auc"] is not None:
                trial_now.report(event["valid_auc"], self.seen)
            if trial_now.should_prune():
                self.searcher.watch(
                    {"event": "end", "run_id": name, "message": "stopped early: below the median"}
                )
                if self.searcher.plan.checkpoint:
                    records.checkpoint(self.searcher.folder, name).remove()
                raise _Stop


def _text(values: Mapping[str, Any]) -> str:
    """Write settings in a line."""
    return ", ".join(f"{name}={value}" for name, value in values.items())
