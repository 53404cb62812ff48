"""Checkpoints of trainings in several processes: the same numbers, on any number of them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs import run_jobs

pytest.importorskip("torchrec")
pytest.importorskip("fbgemm_gpu")

import checkpoint_jobs as jobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of trainings that were stopped after two of four epochs."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[Any, Any]:
    """What trainings without a stop end with."""
    answers = run_jobs([jobs.stopped], folder)
    return answers[0]["stopped"]


def _copy(folder: Path, name: str) -> Path:
    """Copy the stopped trainings' folders: going on writes to them."""
    made = folder / name
    made.mkdir()
    for case in jobs.CASES:
        shutil.copytree(folder / jobs._name(case), made / jobs._name(case))
    return made


def _apart(found: Any, wanted: Any) -> float:
    losses = max(abs(a - b) for a, b in zip(found[0], wanted[0], strict=True))
    rows = max(float((found[1][name] - one).abs().max()) for name, one in wanted[1].items())
    return max(losses, rows)


@pytest.fixture(scope="module")
def two(folder: Path, whole: dict[Any, Any]) -> list[dict[str, Any]]:
    """What two processes find in the checkpoints, and what they end with."""
    made = _copy(folder, "two")
    damaged = made / "damaged"
    shutil.copytree(made / jobs._name(jobs.CASES[0]), damaged)
    file = sorted(damaged.glob("*/*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    return run_jobs([jobs.damaged, jobs.other, jobs.restored, jobs.resumed], made)


def test_two_processes_go_on_with_the_same_numbers(
    two: list[dict[str, Any]], whole: dict[Any, Any]
) -> None:
    for answer in two:
        for case, found in answer["resumed"].items():
            assert _apart(found, whole[case]) == 0, case


def test_wrong_checkpoints_are_refused(two: list[dict[str, Any]]) -> None:
    for answer in two:
        assert "safetensors does not match its checksum" in answer["damaged"]
        assert "is of another" in answer["other"]


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_processes_reads_it(
    folder: Path, two: list[dict[str, Any]], world: int
) -> None:
    made = _copy(folder, f"world{world}")
    for answer in run_jobs([jobs.restored], made, world):
        for case, found in answer["restored"].items():
            _equal(found, two[0]["restored"][case], str(case))


def _equal(found: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    elif isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for name, one in wanted.items():
            _equal(found[name], one, f"{where}/{name}")
    elif isinstance(wanted, (list, tuple)):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            _equal(one, other, f"{where}/{number}")
    else:
        assert found == wanted, where


def test_nothing_in_a_checkpoint_is_pickled(folder: Path, whole: dict[Any, Any]) -> None:
    files = [one for one in (folder / jobs._name(jobs.CASES[0])).rglob("*") if one.is_file()]
    assert {one.suffix for one in files} == {".safetensors", ".json", ""}
    for one in files:
        with pytest.raises(Exception):  # noqa: B017 - whatever the bytes happen to hit
            pickle.loads(one.read_bytes())
