"""Runs of the harness that are told to end, run out of disk, or train on what is broken."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_harness_checkpoint import ROOT, command, config, equal, table

import featemb as fe
from featemb.benchmarks import records, stopping, training
from featemb.benchmarks.run import run_id, run_one
from featemb.benchmarks.sweep import sweep
from featemb.cli import main
from featemb.datasets import Batch, Split
from featemb.layer import FeatureEmbedding

__all__ = ["table"]
ALWAYS = 1e-9


def state(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / ".checkpoints" / f"{name}.pt", weights_only=True)
    return found


def left(out: Path) -> list[str]:
    """What lies in the folder of the runs beside locks."""
    return sorted(one.name for one in out.iterdir() if one.name != ".locks")


@pytest.fixture
def at_call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do something at the n-th call of a function."""

    def patch(owner: Any, name: str, number: int, what: Any) -> None:
        original, calls = getattr(owner, name), 0

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                what()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    return patch


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("where", ["step", "within", "at the end"])
def test_told_to_end(where: str, table: Path, tmp_path: Path, at_call: Any) -> None:
    run = config(table, method="magnitude", epochs=2, eval_every=None if "end" in where else 10)
    name, out = run_id(run), tmp_path / "ended"
    run_one(run, tmp_path / "straight")
    owner, member = (training, "predict") if where != "step" else (fe.staging, "update")
    at_call(owner, member, 13 if where == "step" else 1, terminate)
    with stopping.heard(), pytest.raises(fe.Stopped):
        run_one(run, out, checkpoint=True)
    at = state(out, name)["at"]
    epoch = 1200 // 64 + 1  # steps
    assert at["step"] == {"step": 13, "within": 10, "at the end": epoch}[where]
    assert left(out) == [".checkpoints"]
    (record,) = sweep([run], out, checkpoint=True)
    assert record["bytes"]["training_parts"]["optimizer state"] > 0
    equal(tmp_path / "straight" / name, out / name)
    assert left(out) == [".checkpoints", name]
    assert not list((out / ".checkpoints").iterdir())


def test_told_to_end_while_it_is_tested(table: Path, tmp_path: Path, at_call: Any) -> None:
    from featemb.benchmarks import run as module

    run = config(table, method="full", ratio=None, epochs=1, eval_every=None)
    at_call(module, "predict", 2, terminate)
    with stopping.heard(), pytest.raises(fe.Stopped):
        run_one(run, tmp_path, checkpoint=True)
    assert state(tmp_path, run_id(run))["at"]["stage"] == 1, "training had ended"
    assert run_one(run, tmp_path, checkpoint=True)["status"] == "ok"


def test_told_to_end_while_the_record_is_written(table: Path, tmp_path: Path, at_call: Any) -> None:
    run = config(table, method="full", ratio=None, epochs=1, eval_every=None)
    at_call(records.pq, "write_table", 1, terminate)
    with stopping.heard(), pytest.raises(fe.Stopped):
        run_one(run, tmp_path, checkpoint=True)
    assert records.read(tmp_path / run_id(run))["status"] == "ok"
    assert not list((tmp_path / ".checkpoints").iterdir())


def twice() -> None:
    terminate()
    terminate()


def test_only_the_first_signal_counts() -> None:
    with stopping.heard():
        with pytest.raises(fe.Stopped), stopping.now().patient():
            twice()
        with pytest.raises(fe.Stopped), stopping.now().at_once():
            pytest.fail("it was told to end before")
    assert not stopping.now().asked()


@pytest.mark.slow
def test_a_command_that_is_told_to_end(table: Path, tmp_path: Path) -> None:
    run = config(table, eval_every=None)
    name, out = run_id(run), tmp_path / "ended"
    words = [*command(table, out), "--checkpoint-minutes", "1e-9", "--keep-checkpoints", "2"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    file, end = out / ".checkpoints" / f"{name}.pt.1", time.monotonic() + 90
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == stopping.EXIT == 143
    assert error.startswith("stopped: ")
    assert left(out) == [".checkpoints"]
    at = state(out, name)["at"]
    again = subprocess.run(words, cwd=ROOT, timeout=120, capture_output=True, check=False)
    assert again.returncode == 0, again.stderr
    assert at["step"] > 0
    run_one(run, tmp_path / "straight")
    equal(tmp_path / "straight" / name, out / name)
    assert not list((out / ".checkpoints").iterdir())


@pytest.mark.slow
def test_workers_are_told_to_end(table: Path, tmp_path: Path) -> None:
    words = command(table, tmp_path)
    at = words.index("train")
    words[at] = "bench"
    words += ["--checkpoint-minutes", "1e-9", "--jobs", "2"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    folder, end = tmp_path / ".checkpoints", time.monotonic() + 120
    while len(list(folder.glob("*.pt"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert "Traceback" not in error
    assert len(list(folder.glob("*.pt"))) + len(list(tmp_path.glob("*/run.json"))) == 2


# ---- disk, data, numbers ----


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may be larger: writing fails in the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_for_a_checkpoint(table: Path, tmp_path: Path) -> None:
    run = config(table, method="full", ratio=None, epochs=2, eval_every=None)
    name = run_id(run)
    run_one(run, tmp_path / "straight")
    out = tmp_path / "full"
    with small_files(1000), pytest.raises(fe.StorageError, match="could not be written"):
        run_one(run, out, checkpoint=True)
    assert left(out) == [".checkpoints"]
    assert not list((out / ".checkpoints").iterdir())
    sweep([run], out, checkpoint=True)
    equal(tmp_path / "straight" / name, out / name)


def test_no_space_for_the_record(table: Path, tmp_path: Path, at_call: Any) -> None:
    run = config(table, method="full", ratio=None, epochs=2, eval_every=None)
    name = run_id(run)
    run_one(run, tmp_path / "straight")
    out = tmp_path / "full"
    limit = small_files(1000)
    at_call(records, "write", 1, limit.__enter__)
    try:
        with pytest.raises(fe.StorageError, match=r"record .* could not be written .*large"):
            run_one(run, out, checkpoint=True)
    finally:
        limit.__exit__(None, None, None)
    assert left(out) == [".checkpoints"]
    assert state(out, name)["at"]["stage"] == 1
    sweep([run], out, checkpoint=True)
    equal(tmp_path / "straight" / name, out / name)


def test_no_space_has_an_exit_code(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(table, tmp_path)
    arguments = words[words.index("train") :]
    with small_files(1000), pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 74
    assert capsys.readouterr().err.startswith("error: the checkpoint ")


def test_a_loss_that_is_not_finite(table: Path, tmp_path: Path, at_call: Any) -> None:
    run = config(table, method="full", ratio=None, epochs=2, eval_every=None)
    name, out = run_id(run), tmp_path / "nan"
    run_one(run, tmp_path / "straight")

    def spoil(self: FeatureEmbedding, step: int) -> None:
        if step == 24:
            next(iter(self.parameters())).data[:] = float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureEmbedding, "after_step", spoil)
        record = run_one(run, out, checkpoint=True, checkpoint_minutes=ALWAYS)
    assert record["status"] == "failed"
    message = record["error"]["message"]
    assert "is not finite after step 24; the checkpoint of step 23" in message
    assert state(out, name)["at"]["step"] == 23
    json.dumps(record, allow_nan=False)
    (record,) = sweep([run], out, retry_failed=True, checkpoint=True)
    assert record["status"] == "ok"
    equal(tmp_path / "straight" / name, out / name)


def test_data_that_break_in_the_middle(table: Path, tmp_path: Path) -> None:
    run = config(table, method="full", ratio=None, epochs=2, eval_every=None)
    name, out = run_id(run), tmp_path / "broken"
    run_one(run, tmp_path / "straight")
    original = Split.batches

    def broken(self: Split, size: int, shuffle: bool = False, **more: Any) -> Iterator[Batch]:
        for number, batch in enumerate(original(self, size, shuffle, **more)):
            if shuffle and number == 5:
                raise fe.DataError("shard train-00003 is corrupt")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Split, "batches", broken)
        record = run_one(run, out, checkpoint=True)
    assert record["error"]["message"] == "shard train-00003 is corrupt"
    assert state(out, name)["at"]["step"] == 5
    (record,) = sweep([run], out, retry_failed=True, checkpoint=True)
    equal(tmp_path / "straight" / name, out / name)


@pytest.mark.parametrize("flag", ["--checkpoint-minutes", "--keep-checkpoints"])
def test_settings_out_of_range(
    flag: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(table, tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*words[words.index("train") :], flag, "0"])
    assert caught.value.code == 2
    assert "must be" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
