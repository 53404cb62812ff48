"""The serving benchmark: batches, turns, the memory of fresh processes, the record and the verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featemb as fe
from featemb import models
from featemb.benchmarks.serving import resident, speed, subject
from featemb.benchmarks.serving.latency import summary, take_turns
from featemb.benchmarks.serving.resident import Runner
from featemb.benchmarks.serving.speed import Settings
from featemb.benchmarks.serving.table import tensor_bytes
from featemb.cli import main

SCHEMA = fe.Schema([fe.Feature("user", 900), fe.Feature("item", 300)], ["price"])
BAGS = fe.Schema([fe.Feature("user", 90), fe.Feature("tags", 30, multi=True)])
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def columns(schema: fe.Schema, ids: str = "uniform", numeric: int = 0) -> dict[str, object]:
    return {
        "cardinalities": [one.cardinality for one in schema.features],
        "multi": [one.multi for one in schema.features],
        "numeric": numeric,
        "ids": ids,
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "net.safetensors"
    layer = fe.embedding(SCHEMA, "full+int8", dim=8)
    models.save(models.build("deepfm", embedding=layer, hidden=(8,)).freeze(), path)
    return path


@pytest.mark.parametrize("ids", resident.IDS)
def test_batches_fit_the_schema(ids: str) -> None:
    random = np.random.default_rng(0)
    found = resident.draw(columns(SCHEMA, ids, 1), 4000, random)
    assert found["ids"].shape == (4000, 2)
    assert found["numeric"].dtype == np.float32
    assert (found["ids"] >= 0).all()
    assert (found["ids"].max(0) < [900, 300]).all()
    common = np.bincount(found["ids"][:, 0], minlength=900).max() / 4000
    assert common < 0.01 if ids == "uniform" else 0.05 < common < 0.2
    bags = resident.draw(columns(BAGS, ids), 50, random)
    layer = fe.embedding(BAGS, "full", dim=4)
    jagged = fe.Jagged(*(torch.from_numpy(bags[name]) for name in ("values", "lengths")))
    assert layer(jagged._replace(lengths=jagged.lengths.reshape(-1))).shape == (50, 8)
    unbounded = resident.draw({**columns(SCHEMA, ids), "cardinalities": [None, 3]}, 50, random)
    assert unbounded["ids"][:, 0].max() > 1000


def test_runners_take_turns_on_fresh_batches() -> None:
    seen: list[tuple[str, int]] = []
    drawn = iter(range(10**6))
    runners = {
        name: Runner(lambda arrays: arrays["n"], lambda n, name=name: seen.append((name, n)))
        for name in ("a", "b")
    }
    found = take_turns(runners, lambda _: {"n": next(drawn)}, 4, 5, 2, "cpu")  # type: ignore[dict-item]
    assert {name: len(values) for name, values in found.items()} == {"a": 5, "b": 5}
    assert [n for _, n in seen] == list(range(14)), "no batch is seen twice"
    rounds = [{name for name, _ in seen[i : i + 2]} for i in range(0, 14, 2)]
    assert all(one == {"a", "b"} for one in rounds)
    assert len({seen[i][0] for i in range(0, 14, 2)}) == 2, "neither is always the first"


def test_summaries() -> None:
    found = summary({"a": [0.001, 0.002, 0.003], "b": [0.002, 0.004, 0.006]}, 10, "b")
    assert found["a"]["p50_ms"] == 2.0
    assert found["a"]["best_ms"] == 1.0
    assert found["a"]["p99_ms"] == 2.98
    assert found["a"]["rows_per_second"] == 5000
    assert found["a"]["speedup_of_medians"] == found["a"]["speedup_in_rounds"] == 2.0
    assert "speedup_of_best" not in summary({"a": [0.1]}, 1, None)["a"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"targets": ("eagre",)}, "unknown target 'eagre'; did you mean 'eager'"),
        ({"ids": "normal"}, "unknown ids"),
        ({"batches": (0,)}, "batch sizes of at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        Settings(**wrong)  # type: ignore[arg-type]


@linux
@pytest.mark.slow
def test_a_record_of_two_forms(package: Path, tmp_path: Path) -> None:
    one = subject.read(package, tmp_path)
    how = Settings(targets=("eager", "onnx"), batches=(1, 8), rounds=3, warmup=1, memory_batches=2)
    record = speed.measure(one, how)
    json.dumps(record, allow_nan=False)
    forms = ["package eager", "package onnx", "plain eager", "plain onnx"]
    assert sorted({row["form"] for row in record["latency"]}) == [*forms, "trained eager"]
    assert {row["batch"] for row in record["latency"]} == {1, 8}
    assert all(0 < row["best_ms"] <= row["p50_ms"] <= row["p99_ms"] for row in record["latency"])
    assert [row["form"] for row in record["memory"]] == forms
    assert not record["missing"]
    for row in record["memory"]:
        assert row["before"] <= row["loaded"] <= row["most"]
        assert row["torch"] == row["form"].endswith("eager"), "a server of ONNX has no torch"
    sizes, plain = record["subject"]["bytes"], record["subject"]["plain_bytes"]
    assert sizes["serving"] == models.load(package).memory().serving
    assert plain["serving"] == SCHEMA.full_bytes(8) + SCHEMA.full_bytes(1)


def test_a_form_that_answers_otherwise_stops_it(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(file: str, threads: int | None, device: str) -> Runner:
        runner = resident.eager(file, threads, device)
        return runner._replace(call=lambda inputs: runner.call(inputs) + 0.01)

    monkeypatch.setitem(resident.FORMS, "compiled", wrong)
    how = Settings(targets=("eager", "compiled"), batches=(4,), rounds=1, memory_batches=0)
    with pytest.raises(fe.RunError, match="package compiled differs from eager"):
        speed.measure(subject.read(package, tmp_path, plain=False), how)


def call(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    assert stopped.value.code == code


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--targets", "eager", "--batch", 3, "--rounds", 2, "--no-memory", "--threads", 1)
    made = ("--rows", 60, "--features", 3, "--dim", 4, "--set", "hidden=[4]", "--numeric", 2)
    call("speed", *made, *quick, "--json", tmp_path / "x.json")
    told = capsys.readouterr().out
    assert "deepfm, full+int8, untrained" in told
    (record,) = json.loads((tmp_path / "x.json").read_text())
    assert record["subject"]["features"] == 3
    assert record["subject"]["numeric"] == 2
    assert record["settings"]["threads"] == 1
    assert {row["form"] for row in record["latency"]} == {
        "package eager",
        "plain eager",
        "trained eager",
    }
    layer = fe.embedding(fe.Schema([fe.Feature("any")]), "hash(rows=40)", dim=4)
    layer.freeze("int8").save(tmp_path / "layer")
    call("speed", tmp_path / "layer", *quick, "--no-plain")
    assert "layer" in capsys.readouterr().out
    call("speed", tmp_path / "layer", *quick, code=2)
    assert "unbounded" in capsys.readouterr().err
    call("speed", code=2)
    assert "give packages, or one of --rows and --cardinalities" in capsys.readouterr().err
    call("speed", tmp_path / "none", *quick, code=2)


def latency_lines(record: dict[str, Any]) -> list[str]:
    """The table of latencies of docs/serving.md, from its record."""
    return [
        f"| {row['batch']:,} | {row['form']} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} "
        f"| {row['best_ms']:.2f} | {row['rows_per_second']:,} | {row['speedup_of_medians']:.2f} "
        f"| {row['speedup_of_best']:.2f} |"
        for row in record["latency"]
    ]


def memory_lines(record: dict[str, Any]) -> list[str]:
    """The table of resident memory of docs/serving.md, from its record."""
    lines = []
    for row in record["memory"]:
        held = tensor_bytes(record, row["form"].partition(" ")[0])
        sizes = (held, *(row[name] for name in ("before", "loaded", "growth", "served", "most")))
        cells = " | ".join(f"{size / 1e6:.1f}" for size in sizes)
        lines.append(f"| {row['form']} | {cells} | {row['growth'] / held:.2f} |")
    return lines


def test_the_numbers_of_the_page_are_those_of_the_record() -> None:
    root = Path(__file__).resolve().parent.parent
    (record,) = json.loads((root / "docs/results/speed/serving.json").read_text("utf-8"))
    page = (root / "docs" / "serving.md").read_text("utf-8")
    for lines in (latency_lines(record), memory_lines(record)):
        assert "\n".join(lines) in page, "docs/serving.md lacks:\n" + "\n".join(lines)
    for row in record["memory"]:
        if row["form"].endswith((" eager", " aoti")):
            held = tensor_bytes(record, row["form"].partition(" ")[0])
            assert row["growth"] <= 1.3 * held
