"""``featemb train --distributed`` under torchrun: the record of one process, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import featemb as fe
from featemb.benchmarks import records
from featemb.cli import main
from featemb.datasets import Batch
from featemb.torchrec.ranks import part_of

pytest.importorskip("torchrec")
pytest.importorskip("fbgemm_gpu")

OPTIONS = [
    *("--data", "nycflights13_demo", "--method", "unified(lookups=2)+int8", "--ratio", "10"),
    *("--rows", "4001", "--epochs", "3", "--patience", "9", "--batch-size", "500"),
    *("--model", "deepfm", "--set", "dropout=0.0", "--set", "hidden=[16]", "--threads", "1"),
    "--save-model",
]
SECONDS = 60


def launch(out: Path, *more: str) -> subprocess.Popen[str]:
    """Start two processes of a run."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "featemb", "train", "--distributed", "--out", str(out), *OPTIONS, *more),
    ]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def process_of(rank: int, parent: int) -> int:
    """Return the process of a rank that torchrun started."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            started_by = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if started_by == parent and f"RANK={rank}".encode() in variables:
            return int(entry.name)
    raise AssertionError(f"torchrun {parent} has no process of rank {rank}")


def wait_for(pattern: str, folder: Path, job: subprocess.Popen[str]) -> None:
    """Wait until a training has written its first checkpoint."""
    end = time.monotonic() + 200
    while not list(folder.glob(pattern)):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def record_of(out: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return the one record in a folder, its predictions, and its served model."""
    (folder,) = (one for one in out.iterdir() if (one / "run.json").is_file())
    predictions = pq.read_table(folder / "predictions.parquet").to_pandas()
    return records.read(folder), predictions, fe.models.load(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_ends_the_job_and_a_restart_gives_the_record_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--out", str(tmp_path / "one"), "--quiet", *OPTIONS])
    capsys.readouterr()
    two = tmp_path / "two"
    job = launch(two, "--checkpoint")
    wait_for(".checkpoints/*.dcp/latest", two, job)
    os.kill(process_of(1, job.pid), signal.SIGKILL)
    killed = time.monotonic()
    said = job.communicate(timeout=SECONDS)[0]
    assert time.monotonic() - killed < SECONDS
    assert job.returncode != 0
    assert "SIGKILL" in said
    assert not list(two.glob("*/run.json"))
    again = launch(two, "--checkpoint")
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said
    assert said.count("the record is in") == 1
    assert not list((two / ".checkpoints").iterdir())
    (one, ours, served), (found, theirs, same) = record_of(tmp_path / "one"), record_of(two)
    assert found["run_id"] == one["run_id"]
    assert found["distributed"]["processes"] == 2
    assert "distributed" not in one
    assert found["bytes"]["serving"] == one["bytes"]["serving"]
    for part in ("valid", "test"):
        for name in ("auc", "logloss"):
            wanted = one["metrics"][part][name]["value"]
            assert found["metrics"][part][name]["value"] == pytest.approx(wanted, abs=1e-5)
    assert found["training"] == one["training"] | {
        "best_valid_auc": pytest.approx(one["training"]["best_valid_auc"], abs=1e-5)
    }
    assert abs(ours["score"] - theirs["score"]).max() < 1e-3  # a code of int8 may round otherwise
    _same_rows(served, same)
    done = launch(two, "--checkpoint")
    assert "holds this run already" in done.communicate(timeout=100)[0]
    assert done.returncode == 0


def _same_rows(one: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = dict(other.state_dict())
    for name, value in one.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, theirs[name], atol=1e-4), name
        else:
            assert int((value.long() - theirs[name].long()).abs().max()) <= 1, name


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 8, 24])
def test_a_batch_is_cut_without_overlap_or_loss(rows: int, world: int) -> None:
    lengths = torch.randint(0, 3, (2 * rows,))
    values = torch.arange(int(lengths.sum()))
    label, numeric = torch.rand(rows), torch.rand(rows, 2)
    batch = Batch(fe.Jagged(values, lengths), numeric, label)
    parts = [part_of(batch, rank, world) for rank in range(world)]
    own = [part for part in parts if part.rows]
    assert torch.equal(torch.cat([part.label for part in own]), label)
    assert torch.equal(torch.cat([part.numeric for part in own]), numeric)
    assert [part.first for part in own] == [sum(p.rows for p in own[:n]) for n in range(len(own))]
    bags = [part.ids.lengths.view(2, -1) for part in own]
    assert torch.equal(torch.cat(bags, 1), lengths.view(2, -1))
    split = [
        torch.split(part.ids.values, bag.sum(1).tolist())
        for part, bag in zip(own, bags, strict=True)
    ]
    assert torch.equal(torch.cat([torch.cat(one) for one in zip(*split, strict=True)]), values)
    means = [(part.weight * part.label).mean() for part in parts]
    assert torch.stack(means).mean() == pytest.approx(float(label.mean()), abs=1e-6)
    dense = Batch(torch.arange(rows)[:, None], None, label)
    ids = [part_of(dense, rank, world) for rank in range(world)]
    assert torch.cat([one.ids for one in ids if one.rows])[:, 0].tolist() == list(range(rows))


def test_without_torchrun_it_says_how(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--distributed", "--out", str(tmp_path / "x"), *OPTIONS])
    assert stopped.value.code == 2
    assert "torchrun --nproc-per-node" in capsys.readouterr().err


def test_wrong_options_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["train", "--distributed", "--sharding", "rows", "--out", str(tmp_path), *OPTIONS])
    assert "unknown sharding 'rows'" in capsys.readouterr().err
