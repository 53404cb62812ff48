"""How long a sweep will take: judged by records, by timed steps, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featemb import cli
from featemb.benchmarks import estimate as module
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.estimate import Estimate, estimate, probed_seconds, to_do
from featemb.benchmarks.run import run_id, run_one

SMALL = {
    "data": "synthetic",
    "data_options": {"rows": 3000, "cardinalities": [40, 20]},
    "dim": 4,
    "epochs": 2,
    "batch_size": 64,
    "model_config": {"hidden": [8], "cross_layers": 1},
    "threads": 1,
}


def config(method: str, **settings: Any) -> RunConfig:
    size = {} if method == "full" else {"ratio": 3}
    return RunConfig(method=method, **{**SMALL, **size, **settings})


def test_runs_are_judged_by_records_of_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [config("hash"), config("hash", seed=1), config("full")]
    record = run_one(configs[0], tmp_path)
    todo, done = to_do(configs, tmp_path)
    assert todo == configs[1:]
    assert done == [tmp_path / run_id(configs[0])]
    assert estimate(todo, done) == Estimate(2, record["timings"]["total"], 1, 0, 1)
    monkeypatch.setattr(module, "probed_seconds", lambda _: 7.0)
    wanted = Estimate(2, record["timings"]["total"] + 7.0, 1, 1, 0)
    assert estimate(todo, done, probe=True) == wanted


def test_failed_runs_are_done_unless_they_are_tried_again(tmp_path: Path) -> None:
    impossible = config("lowdim", ratio=1000)
    assert run_one(impossible, tmp_path)["status"] == "failed"
    assert to_do([impossible], tmp_path) == ([], [])
    assert to_do([impossible], tmp_path, retry_failed=True) == ([impossible], [])
    assert probed_seconds(impossible) == 0


def test_timed_steps_count_all_stages_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_step_seconds", lambda *_: 1.0)
    steps = 38  # 2400 rows in batches of 64
    assert int(probed_seconds(config("hash"))) == 2 * steps
    assert int(probed_seconds(config("magnitude"))) == 2 * 2 * steps


def test_timed_steps_are_near_the_truth(tmp_path: Path) -> None:
    asked = config("hash", epochs=4, patience=4)
    guess, truth = probed_seconds(asked), run_one(asked, tmp_path)["timings"]["total"]
    assert truth / 10 < guess < truth * 10


def test_its_text() -> None:
    assert Estimate(0, 0.0, 0, 0, 0).text() == "0 runs to do"
    assert Estimate(2, 0.0, 0, 0, 2).text() == "2 runs to do; 2 of unknown length"
    wanted = "3 runs to do: about 1.0 minutes in 2 processes (2 as runs that are done, 1 by timed"
    assert Estimate(3, 120.0, 2, 1, 0).text(2).startswith(wanted)
    assert "about 3.0 hours in 1 process (" in Estimate(9, 10800.0, 9, 0, 0).text()


def test_a_dry_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "nycflights13_demo", "--rows", "500", "--epochs", "1", "--out"]
    cli_run = ["bench", *flags, str(tmp_path), "--method", "hash", "--ratio", "4", "--dim", "4"]
    with pytest.raises(SystemExit):
        cli.main([*cli_run, "--dry-run"])
    assert "2 runs, 2 runs to do; 2 of unknown length" in capsys.readouterr().out
