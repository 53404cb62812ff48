"""The parts of a report: rows, intervals, the front, looks, pictures, and what the page reads."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import make, without_predictions

import featemb as fe
from featemb.benchmarks import stats
from featemb.benchmarks.records import read_all
from featemb.benchmarks.report import Row, aggregate, write_report
from featemb.benchmarks.report.aggregate import Interval
from featemb.benchmarks.report.looks import family_of, looks
from featemb.benchmarks.report.pareto import front
from featemb.benchmarks.report.payload import payload, row_id, to_json
from featemb.benchmarks.report.pictures import png, spread
from featemb.benchmarks.report.table import table
from featemb.errors import RunError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for seed in range(3):
        make(folder, seed=seed, users=30)
        for ratio, serving in ((10.0, 100), (100.0, 10)):
            size = {"ratio": ratio, "serving": serving, "seed": seed, "users": 30}
            make(folder, 2.0, method="hash", **size)
            make(folder, 0.5, method="unified", **size)
            make(folder, 0.1, method="qr", **size)
    return folder


def rows_of(folder: Path) -> list[Row]:
    return aggregate(folder, read_all(folder).records.values())


def test_p_values_are_adjusted_in_families(runs: Path) -> None:
    """One family a data set, model and reference; AUC and LogLoss each by itself."""
    rows = rows_of(runs)
    for name in ("to_full", "to_hash"):
        against = [one for row in rows if (one := getattr(row, name)) is not None]
        assert len(against) == (6 if name == "to_full" else 4)
        auc = stats.holm([one.compared.auc.p for one in against])
        loss = stats.holm([one.compared.logloss.p for one in against])
        assert [one.p for one in against] == pytest.approx(auc)
        assert [one.logloss_p for one in against] == pytest.approx(loss)


def test_intervals_hold_test_rows_and_training(runs: Path) -> None:
    records = read_all(runs).records
    for row in rows_of(runs):
        for name in ("auc", "logloss", "gauc"):
            one = getattr(row, name)
            tests = [records[run]["metrics"]["test"][name] for run in row.runs]
            narrow = sum(test["high"] - test["low"] for test in tests) / len(tests)
            assert one.low <= one.value <= one.high
            assert one.value == pytest.approx(sum(test["value"] for test in tests) / 3)
            if one.high < 1:
                assert one.high - one.low >= 0.99 * narrow


def test_the_front_is_what_nothing_beats(runs: Path) -> None:
    rows = rows_of(runs)
    best = front(rows)
    for row in rows:
        beaten = any(
            other.serving <= row.serving
            and other.auc.value >= row.auc.value
            and (other.serving, other.auc.value) != (row.serving, row.auc.value)
            for other in rows
        )
        assert (row in best) == (not beaten)
    assert [row.serving for row in best] == sorted(row.serving for row in best)


def test_looks_tell_all_methods_apart() -> None:
    few = looks(["full", "hash", "qr"])
    assert len({look.light for look in few.values()}) == 3
    methods = [*fe.methods(), *(f"{name}+int8" for name in ("hash", "unified", "full"))]
    many = looks(methods)
    assert len({(one.light, one.symbol, one.dash) for one in many.values()}) == len(methods)
    for look in many.values():
        assert re.fullmatch(r"#[0-9a-f]{6}", look.light)
        assert re.fullmatch(r"#[0-9a-f]{6}", look.dark)
        assert luminance(look.light) < luminance(look.dark), "lighter on a dark page"
    order = [look.family for look in many.values()]
    assert len(list(itertools.groupby(order))) == len(set(order)), "families stay together"


def luminance(color: str) -> float:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("hash", "address"),
        ("hash+int8", "address"),
        ("lowdim", "shape"),
        ("full+int8", "format"),
        ("lsq", "format"),
        ("not_installed_here(a=1)", "other"),
    ],
)
def test_families(text: str, family: str) -> None:
    assert family_of(text) == family
    assert looks([text])[text].family == family


def test_names_are_spread() -> None:
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
    crowded = spread([0.98, 0.985, 0.99, 0.99], 0.05)
    assert crowded[-1] == 1.0
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(crowded))
    assert spread([], 0.05) == []


def test_pictures_of_few_and_of_many_methods(runs: Path, tmp_path: Path) -> None:
    sample = rows_of(runs)[-1]

    def around(value: float) -> Interval:
        return Interval(value, value - 0.01, value + 0.01)

    for count in (3, 40):
        names = [f"{name}+int8" for name in fe.methods()][: count // 2]
        names += fe.methods()[: count - len(names)]
        rows = [
            replace(
                sample,
                method=name,
                asked=f"{size}x",
                serving=10**6 // size,
                auc=around(0.7 + 0.004 * number - size / 1000),
            )
            for number, name in enumerate(names)
            for size in (10, 50)
        ]
        path = tmp_path / f"{count}.png"
        png(rows, "many", path, looks(names))
        assert path.read_bytes().startswith(b"\x89PNG")


def test_row_ids_stay_and_differ(runs: Path) -> None:
    rows = rows_of(runs)
    assert len({row_id(row) for row in rows}) == len(rows)
    assert [row_id(row) for row in rows_of(runs)] == [row_id(row) for row in rows]


def test_the_payload_holds_configurations_and_curves(runs: Path) -> None:
    rows, records = rows_of(runs), read_all(runs).records
    found = json.loads(to_json(payload(rows, records, looks(row.method for row in rows), runs)))
    assert set(found["runs"]) == set(records)
    for name, run in found["runs"].items():
        assert run["facts"]["config"] == records[name]["config"]
        assert run["curve"]["epoch"] == [1, 2]
        assert len(run["curve"]["valid_auc"]) == 2
        assert run["curve"]["train_loss"] == [None, None]
    hash_row = next(one for one in found["rows"] if one["label"] == "hash")
    for words in ("hash", "bytes", "AUC", "to full", "p ", "(Holm)", "3 seeds", "of training"):
        assert words in hash_row["hover"]


def test_a_solved_spec_is_shown(runs: Path) -> None:
    records = dict(read_all(runs).records)
    rows = rows_of(runs)
    run = next(row for row in rows if row.label == "hash").runs[0]
    records[run] = {**records[run], "solved": "hash(rows=12)"}
    found = payload(rows, records, looks(row.method for row in rows), runs)
    assert any("hash(rows=12)" in row["hover"] for row in found["rows"])
    assert found["runs"][run]["facts"]["solved"] == "hash(rows=12)"


def test_curves_may_be_left_out_but_not_broken(runs: Path, tmp_path: Path) -> None:
    path = next(runs.glob("*/curve.parquet"))
    path.unlink()
    assert write_report(runs, tmp_path / "out")
    path.write_bytes(b"broken")
    with pytest.raises(RunError, match=r"curve\.parquet is not readable"):
        write_report(runs, tmp_path / "out")


def test_json_cannot_end_its_element() -> None:
    text = to_json({"a": "</script><!-- <b>"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!-- <b>"}


def test_the_table_has_intervals_and_leaves_out_what_is_empty(runs: Path) -> None:
    rows = rows_of(runs)
    text = table(rows)
    row = next(row for row in rows if row.to_hash is not None)
    assert row.to_hash is not None
    change = row.to_hash.compared.auc
    assert change is not None
    assert f"{change.value:+.4f} <small>[{change.low:+.4f}, {change.high:+.4f}]" in text
    assert "gAUC" in text
    assert "&dagger;" not in text
    plain = table([replace(row, gauc=None, to_full=None, to_hash=None) for row in rows])
    assert "gAUC" not in plain
    assert "to hash" not in plain
    assert "verdict" not in plain


def test_the_page_says_what_is_missing(runs: Path, tmp_path: Path) -> None:
    assert "Paired tests are not" not in write_report(runs, tmp_path / "out")[0].read_text()
    without_predictions(runs)
    text = write_report(runs, tmp_path / "out")[0].read_text()
    assert "Paired tests are not available for 6 of 7 rows" in text


def test_one_seed_is_marked(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, 2.0, 100, method="hash", ratio=10.0)
    text = write_report(tmp_path)[0].read_text()
    assert "&dagger; one seed: training noise not counted." in text
