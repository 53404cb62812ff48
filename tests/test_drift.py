"""Progressive validation: days, vocabularies that are rebuilt, and what the records tell."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import featemb as fe
from featemb import models, optim, staging
from featemb.benchmarks import drift_table
from featemb.benchmarks.drift import drift, read, run
from featemb.benchmarks.drift_config import DriftConfig
from featemb.benchmarks.drift_vocabulary import Vocabulary, take_over
from featemb.benchmarks.metrics import auc
from featemb.cli import main
from featemb.datasets import Batch, Split, load
from featemb.datasets.drifting import drifting_days
from featemb.datasets.timeline import Timeline, timeline
from featemb.errors import ConfigError, DataError, RunError

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"rows": 6000, "ids": 60, "features": 3, "turnover": 0.2}
TRAIN: dict[str, Any] = {"dim": 4, "model_config": {"hidden": (8,)}, "lr": 0.01, "batch_size": 128}


def config(**settings: Any) -> DriftConfig:
    base = {"data": "drifting", "data_options": SMALL, "days": 5, **TRAIN}
    return DriftConfig(**(base | settings))


# ---- the drifting data ----


def test_ids_enter_and_leave() -> None:
    made = drifting_days(rows=20_000, days=4, features=2, ids=50, turnover=0.2, seed=1)
    assert made.cardinality == 50 + 3 * 10 + 1
    for f in range(2):
        days = [set(ids[:, f].tolist()) for ids in made.ids]
        assert min(days[0]) >= 1
        for before, now in pairwise(days):
            assert 0 < len({one for one in now if one > max(before)}) <= 10
            assert before - now
        gone = days[0] - days[1] - days[2] - days[3]
        assert gone, "who left does not come back"
    still = drifting_days(rows=5000, days=4, ids=50, turnover=0.0)
    assert max(ids.max() for ids in still.ids) <= 50


def test_the_best_auc_is_that_of_the_true_probabilities() -> None:
    made = drifting_days(rows=60_000, days=3, seed=3)
    for label, chance, best in zip(made.label, made.chance, made.best_auc, strict=True):
        assert auc(label, chance) == pytest.approx(best, abs=0.012)
        assert label.mean() == pytest.approx(chance.mean(), abs=0.02)
    again, other = drifting_days(rows=600, seed=3), drifting_days(rows=600, seed=4)
    assert again.fingerprint == drifting_days(rows=600, seed=3).fingerprint != other.fingerprint
    data = load("drifting", **SMALL)
    assert len(data.splits["train"]) == 4800
    assert len(data.meta["bayes_auc_by_day"]) == 10
    assert 0.5 < data.meta["bayes_auc"] < 1


@pytest.mark.parametrize(
    "wrong", [{"turnover": 1.5}, {"zipf": -1}, {"rows": 5}, {"ids": 1}, {"features": 0}]
)
def test_arguments_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="out of range"):
        drifting_days(**wrong)


# ---- days ----


def clicks(folder: Path, rows: int = 900) -> Path:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "when": random.permutation(rows),
            "user": [f"u{n}" for n in random.integers(0, 40, rows)],
            "age": random.normal(50, 9, rows),
            "click": random.integers(0, 2, rows),
        }
    )
    frame.loc[5, "user"] = None
    frame.to_parquet(folder / "clicks.parquet")
    return folder / "clicks.parquet"


def test_days_of_a_table_follow_its_time(tmp_path: Path) -> None:
    path = clicks(tmp_path)
    days = timeline(path, 3, cache=tmp_path / "c", label="click", time="when", min_count=5)
    assert days.features == ("user",)
    assert days.numeric == ("age",)
    assert [len(day) for day in days.days] == [300, 300, 300]
    frame = pd.read_parquet(path).sort_values("when")
    ids = torch.cat([day.ids for day in days.days])[:, 0].tolist()  # type: ignore[misc]
    assert torch.cat([day.label for day in days.days]).tolist() == frame.click.tolist()
    pairs = set(zip(frame.user.fillna("missing").tolist(), ids, strict=True))
    assert len(pairs) == frame.user.nunique() + 1, "an id for each value, none is left out"
    assert [one for name, one in pairs if name == "missing"] == [0]


def test_what_has_no_days(tmp_path: Path) -> None:
    path = clicks(tmp_path)
    with pytest.raises(DataError, match=r"no order of time.*'random'.*name a column of time"):
        timeline(path, 3, cache=tmp_path / "c", label="click")
    with pytest.raises(DataError, match="days must be an integer >= 3, got 2"):
        timeline(path, 2, label="click", time="when")
    with pytest.raises(DataError, match="unknown option 'row'; did you mean 'rows'"):
        timeline("drifting", 3, row=5)
    with pytest.raises(DataError, match="neither a data set nor a file"):
        timeline(tmp_path / "none.parquet", 3)


# ---- vocabularies ----


def split(ids: list[list[int]]) -> Split:
    return Split(torch.zeros(len(ids)), torch.tensor(ids))


def test_a_vocabulary_knows_its_days() -> None:
    first, second = split([[7, 5], [7, 0], [3, 5]]), split([[7, 9], [8, 9], [3, 5]])
    one, both = Vocabulary.of([first], 1), Vocabulary.of([first, second], 2)
    assert [known.tolist() for known in one.known] == [[3, 7], [5]]
    assert [counts.tolist() for counts in one.counts] == [[0, 1, 2], [1, 2]]
    assert one(second).ids.tolist() == [[2, 0], [0, 0], [1, 1]]  # type: ignore[union-attr]
    assert [known.tolist() for known in both.known] == [[3, 7], [5, 9]]
    assert [counts.tolist() for counts in both.counts] == [[1, 2, 3], [1, 3, 2]]
    ours, theirs = one.moved(both)
    assert len(one) == 5
    assert ours.tolist() == [0, 1, 2, 3, 4]
    assert theirs.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("model", ["dcnv2", "deepfm"])
@pytest.mark.parametrize("optimizer", ["row_adam", "row_adagrad", "row_rmsprop", "dense_adam"])
def test_rows_move_with_their_state(model: str, optimizer: str) -> None:
    """Two days over one vocabulary, or over two between which all rows move, are the same."""
    random = np.random.default_rng(0)
    raw = split(random.integers(1, 30, (64, 2)).tolist())
    label = torch.from_numpy(random.integers(0, 2, 64)).float()
    large = split([[n, m] for n in range(60) for m in (n, n + 5)])
    small_words, large_words = Vocabulary.of([raw], 1), Vocabulary.of([large], 1)

    def network(words: Vocabulary) -> Any:
        layer = fe.embedding(words.schema("ab", ()), "full", dim=4, seed=0)
        net = models.build(model, embedding=layer, seed=0, hidden=(8,), dropout=0.0)
        return net, optim.build(net, 0.05, optimizer)

    def steps(net: Any, optimizers: Any, words: Vocabulary) -> None:
        batch = Batch(words(raw).ids.long(), None, label)  # type: ignore[union-attr]
        net.train()
        for _ in range(5):
            staging.update(net, staging.layers(net), batch, optimizers)

    straight, ours = network(small_words)
    steps(straight, ours, small_words)
    moved, theirs = network(large_words)
    rows = small_words.moved(large_words)
    take_over(moved, theirs, straight, ours, rows)
    steps(straight, ours, small_words)
    steps(moved, theirs, large_words)
    straight.eval()
    moved.eval()
    with torch.no_grad():
        one = straight(small_words(raw).ids.long())  # type: ignore[union-attr]
        other = moved(large_words(raw).ids.long())  # type: ignore[union-attr]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_only_plain_tables_move() -> None:
    schema = fe.Schema([fe.Feature("a", 50)])
    nets = []
    for _ in range(2):
        layer = fe.embedding(schema, "hash", dim=4, ratio=2)
        nets.append(models.build("dcnv2", embedding=layer, hidden=(8,)))
    with pytest.raises(ConfigError, match="one row an id"):
        take_over(nets[0], [], nets[1], [], (torch.arange(1), torch.arange(1)))


# ---- runs ----


def test_a_vocabulary_that_is_rebuilt_keeps_up() -> None:
    rebuilt, fixed = drift(config(way="rebuilt")), drift(config(way="fixed"))
    raw = drift(config(method="unified(lookups=2)"))
    for record in (rebuilt, fixed, raw):
        assert [step["tested_day"] for step in record["steps"]] == [2, 3, 4, 5]
        assert all(0.5 < step["best_auc"] < 1 for step in record["steps"])
        json.dumps(record, allow_nan=False)
    last = [one["steps"][-1] for one in (rebuilt, fixed, raw)]
    assert last[0]["auc"] > last[1]["auc"] + 0.01
    known = Vocabulary.of(timeline("drifting", 5, **SMALL).days[:1], 1)
    assert last[1]["serving_bytes"] == 4 * 4 * len(known)
    assert last[0]["unknown_share"] == pytest.approx(last[0]["new_share"], abs=0.02)
    assert last[1]["unknown_share"] > last[0]["unknown_share"] + 0.2
    assert last[2]["unknown_share"] is None
    assert last[0]["serving_bytes"] > last[1]["serving_bytes"] == fixed["full_bytes_first_day"]
    assert last[2]["serving_bytes"] <= fixed["full_bytes_first_day"]
    assert rebuilt["steps"][0]["auc"] == fixed["steps"][0]["auc"], "one day, one vocabulary"
    assert last[0]["rows"]["new"] > 0 == last[1]["rows"]["moved"] == last[2]["rows"]["moved"]
    again = drift(config(way="rebuilt"))
    assert [s["auc"] for s in again["steps"]] == [s["auc"] for s in rebuilt["steps"]]


def test_a_window_forgets_ids() -> None:
    all_days, two = (drift(config(way="rebuilt", window=window)) for window in (None, 2))
    assert two["steps"][-1]["serving_bytes"] < all_days["steps"][-1]["serving_bytes"]
    assert two["steps"][-1]["rows"]["gone"] > 0 == all_days["steps"][-1]["rows"]["gone"]


def test_a_method_without_hashes_is_refused() -> None:
    with pytest.raises(fe.SchemaError, match="unbounded"):
        drift(config(method="full"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"way": "weekly"}, "unknown way 'weekly'"),
        ({"way": "rebuilt", "method": "hash"}, "rebuilt for the method full"),
        ({"days": 0}, "days must be an integer >= 1"),
        ({"lr": 0}, "lr must be a number > 0"),
        ({"ratio": -1.0}, "ratio must be a number > 0"),
        ({"window": 0}, "window must be an integer >= 1 or none"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'"),
        ({"model": "dcnv3"}, "dcnv3"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config(**wrong)


def test_records_and_their_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [text for k, v in SMALL.items() for text in ("--option", f"{k}={v}")]
    words = ["drift", "--data", "drifting", "--days", "4", "--dim", "4", "--set", "hidden=[8]"]
    words += [*options, "--method", "hash", "--window", "2", "--out", str(tmp_path)]
    for _ in range(2):  # the second time there is nothing to do
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
    assert len(list(tmp_path.iterdir())) == 4
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["drift", "--out", str(tmp_path), "--markdown"])
    told = capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    lines = [line for line in told.splitlines() if line.startswith("| rebuilt")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| rebuilt every day, of all days",
        "| rebuilt every day, of 2 days",
    ]
    for path in tmp_path.iterdir():
        assert f"{read(path)['mean_auc']:.4f}" in told


def test_records_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no records of a drift"):
        drift_table.read_all(tmp_path)
    path = tmp_path / f"{config().run_id}.json"
    path.write_text("{}")
    with pytest.raises(RunError, match="is not a record of a drift"):
        run(config(), tmp_path)


def test_the_page_shows_the_records() -> None:
    page = (ROOT / "docs" / "drift.md").read_text("utf-8")
    records = drift_table.read_all(ROOT / "docs" / "results" / "drift")
    for line in drift_table.markdown(records).splitlines():
        assert line in page
    assert len(re.findall(r"^\| (?:rebuilt|of the|none)", page, re.M)) == sum(
        len(rows) for rows in drift_table.by_data(records).values()
    )


def test_a_timeline_is_data() -> None:
    days = timeline("drifting", 3, rows=600, ids=20)
    assert isinstance(days, Timeline)
    assert days.days[0].ids is not None
    assert int(days.days[0].ids.min()) >= 0
    assert days.days[0].ids.dtype == torch.int64
