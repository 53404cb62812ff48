"""Tables for the terminal: of one run, of a sweep before it starts, of a sweep against full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from featemb.benchmarks import records
from featemb.benchmarks.compare import AgainstFull, against_full
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.run import run_id

if TYPE_CHECKING:
    from featemb.benchmarks.protocol import Choice
    from featemb.benchmarks.search import Found

Record = Mapping[str, Any]


def run_table(record: Record) -> Table:
    """Return what one run costs and scores."""
    table = Table("", "value", title=record["run_id"], title_justify="left")
    size, test = record["bytes"], record["metrics"]["test"]
    rows = {
        "serving": f"{megabytes(size['serving'])} MB ({size['serving']:,} bytes)",
        "full table": f"{megabytes(size['full'])} MB",
        "ratio": f"{size['ratio']:.2f}",
        "training": f"{megabytes(size['training'])} MB, with optimizer state",
        "test AUC": interval(test["auc"]),
        "test LogLoss": interval(test["logloss"]),
        "test gAUC": interval(test["gauc"]),
        "calibration": f"{test['calibration']:.4f} (mean prediction / mean label)",
        "epochs": f"{record['training']['epochs_run']}, best {record['training']['best_epoch']}",
        "seconds": f"{record['timings']['total']:.1f}, "
        f"{record['timings']['step_ms']:.2f} ms a training step",
    }
    if size["peak_device"] is not None:
        rows["peak on device"] = f"{megabytes(size['peak_device'])} MB"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def comparison_tables(found: Iterable[Record], folder: Path) -> list[Table]:
    """Return a table a data set and model: its runs, each against full on the same test rows."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        if record["status"] == "ok":
            config = record["config"]
            groups.setdefault((config["data"], config["model"]), []).append(record)
    return [_comparison(group, folder) for group in groups.values()]


def _comparison(group: list[Record], folder: Path) -> Table:
    config = group[0]["config"]
    title = f"{config['data']}, {config['model']}: test split, AUC against full on the same rows"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("seed", "MB", "ratio", "LogLoss", "AUC", "- full", "95%, bootstrap", "p, DeLong"):
        table.add_column(name, justify="right", no_wrap=True)
    differences = against_full(group, folder)
    for record in group:
        config, size, test = record["config"], record["bytes"], record["metrics"]["test"]
        table.add_row(
            config["method"],
            str(config["seed"]),
            megabytes(size["serving"]),
            f"{size['ratio']:.1f}",
            number(test["logloss"]),
            number(test["auc"]),
            *_difference(differences.get(record["run_id"])),
        )
    return table


def _difference(compared: AgainstFull | None) -> tuple[str, str, str]:
    if compared is None:
        return "", "", ""
    bootstrap = compared.bootstrap
    return (
        f"{compared.delong.value:+.5f}",
        f"[{bootstrap.low:+.5f}, {bootstrap.high:+.5f}]",
        f"{compared.delong.p:.2g}",
    )


def tuned_table(made: Iterable[Choice]) -> Table:
    """Return the choices of a sweep: the validation AUC of all that was tried."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in ("data", "model", "size", "settings", "valid AUC", ""):
        table.add_column(name)
    for choice in made:
        question = choice.question
        data, method, model = question.kind
        if not question.trials:
            table.add_row(method, data, model, "none can be reached")
        for trial, values, score in zip(
            question.trials, question.candidates, choice.scores, strict=False
        ):
            text = ", ".join(f"{name} = {value}" for name, value in values.items())
            auc = f"{score:.5f}" if isinstance(score, float) else score
            mark = "chosen" if values == choice.chosen else ""
            table.add_row(method, data, model, _size(trial), text, auc, mark)
    return table


def trials_table(found: Found, knobs: Sequence[str]) -> Table:
    """Return the trials of a search, the best first; what has no score is last."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("valid AUC", *knobs):
        table.add_column(name, overflow="fold")
    ranked = sorted(found.trials, key=lambda one: -1.0 if one.auc is None else one.auc)
    for trial in reversed(ranked):
        score = trial.reason if trial.auc is None else f"{trial.auc:.5f}"
        table.add_row(score, *(str(trial.values[name]) for name in knobs))
    return table


def plan_table(configs: Iterable[RunConfig], folder: Path, retry_failed: bool) -> Table:
    """Return the runs of a sweep with their state."""
    table = Table("run", "method", "size", "state")
    for config in configs:
        name = run_id(config)
        state = records.status(folder, name) or "to do"
        if state == "failed" and retry_failed:
            state = "to do again"
        table.add_row(name, config.method, _size(config), state)
    return table


def _size(config: RunConfig) -> str:
    if config.ratio:
        return f"ratio {config.ratio:g}"
    return f"{config.budget:,} bytes" if isinstance(config.budget, int) else "its own"


def megabytes(size: int) -> str:
    """Bytes as decimal megabytes, three significant digits at least."""
    return f"{size / 1e6:,.3f}" if size < 10**7 else f"{size / 1e6:,.1f}"


def number(metric: Mapping[str, float] | None) -> str:
    """A metric's value."""
    return "-" if metric is None else f"{metric['value']:.5f}"


def interval(metric: Mapping[str, float] | None) -> str:
    """A metric's value and its 95% interval, where it has one."""
    if metric is None:
        return "- (the data have no user column)"
    if metric.get("low") is None:
        return number(metric)
    return f"{metric['value']:.5f} [{metric['low']:.5f}, {metric['high']:.5f}]"
