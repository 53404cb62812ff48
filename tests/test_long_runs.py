"""Trainings that take long: checkpoints within an epoch, and what ends a training early."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import CASES, DATA, Bomb, Dropping, killed, method, same, told
from torch.utils.data import DataLoader, TensorDataset

import featemb as fe
from featemb.check.case import LinearReader, TaskBatch

ROOT = Path(__file__).resolve().parent
ALWAYS = 1e-9  # minutes: after every step


@pytest.mark.parametrize("name", ["one stage", "annealing", "cce", "cafe", "all kinds of stages"])
def test_killed_behind_any_step(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    straight = case(0)
    for number in (3, 8, 13):
        path = tmp_path / f"{number}.pt"
        assert killed(case, fe.Checkpoint(path, ALWAYS), Bomb("batch", number)) is None
        state = torch.load(path, weights_only=True)
        assert state["at"]["batch"] % 7 == number - 1 - 7 * ((number - 1) // 7)
        same(straight, case(9, path))


def test_killed_again_and_again(tmp_path: Path) -> None:
    case, path = CASES["within an epoch"], tmp_path / "one.pt"
    straight, found, lives = case(0), None, 0
    while found is None and lives < 20:
        seed = lives if path.exists() else 0  # a life reads up to 7 batches that are done
        found = killed(case, fe.Checkpoint(path, ALWAYS, keep=2), Bomb("batch", 9), seed)
        lives += 1
    assert lives > 1
    same(straight, found)


def test_an_interrupted_evaluation_is_made_up_for(tmp_path: Path) -> None:
    case = CASES["within an epoch"]
    straight = case(0)

    class Stop(Bomb):
        def __call__(self, kind: str) -> None:
            try:
                super().__call__(kind)
            except BaseException as error:
                raise fe.Stopped("in an evaluation") from error

    for number in (1, 2, 3):  # the third one ends an epoch
        path = tmp_path / f"{number}.pt"
        with pytest.raises(fe.Stopped):
            case(0, path, Stop("evaluate", number))
        assert torch.load(path, weights_only=True)["losses"] is not None
        same(straight, case(9, path))


def test_stopped_behind_any_step(tmp_path: Path) -> None:
    def run(path: Path, seed: int, stop: Any = None) -> Any:
        torch.manual_seed(seed)
        net = Dropping(method("full")(seed))
        return net, told(fe.fit(net, lambda epoch: DATA, epochs=2, checkpoint=path, stop=stop))

    straight = run(tmp_path / "straight.pt", 0)
    for number in (1, 5, 7, 9, 14):
        asked, path = iter(range(1, 99)), tmp_path / f"{number}.pt"
        with pytest.raises(fe.Stopped, match="behind step"):
            run(path, 0, lambda n=number, asked=asked: next(asked) == n)
        same(straight, run(path, 9))
    with pytest.raises(fe.Stopped):
        fe.fit(Dropping(method("full")(0)), lambda epoch: DATA, stop=lambda: True)


def test_a_loader_that_draws_from_the_global_generator(tmp_path: Path) -> None:
    ids = torch.cat([batch.ids for batch in DATA])
    label = torch.cat([batch.label for batch in DATA])

    def batches(epoch: int) -> Iterator[TaskBatch]:
        order = torch.Generator().manual_seed(epoch)
        for one, two in DataLoader(TensorDataset(ids, label), 32, shuffle=True, generator=order):
            torch.rand(3)  # as loaders do that seed their workers
            yield TaskBatch(one, None, two)

    def run(seed: int, path: Path, stop: Any = None) -> Any:
        torch.manual_seed(seed)
        net = Dropping(method("full")(seed))
        return net, told(fe.fit(net, batches, epochs=2, checkpoint=path, stop=stop))

    asked = iter(range(9))
    with pytest.raises(fe.Stopped):
        run(0, tmp_path / "one.pt", lambda: next(asked) == 4)
    same(run(0, tmp_path / "straight.pt"), run(9, tmp_path / "one.pt"))


# ---- several checkpoints ----


def test_several_are_kept(tmp_path: Path) -> None:
    case, path = CASES["one stage"], tmp_path / "one.pt"
    assert killed(case, fe.Checkpoint(path, ALWAYS, keep=3), Bomb("batch", 6)) is None
    files = fe.Checkpoint(path).files()
    assert [one.name for one in files] == ["one.pt", "one.pt.1", "one.pt.2"]
    steps = [torch.load(one, weights_only=True)["at"]["step"] for one in files]
    assert steps == [5, 4, 3]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"one.pt' is not a readable.*going on from .*one.pt.1"):
        found = case(9, fe.Checkpoint(path))
    same(case(0), found)
    assert fe.Checkpoint(path).files() == [path], "one is kept, as was asked for"
    fe.Checkpoint(path).remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("minutes", [0, -1, True, "1", float("nan"), float("inf")])
def test_minutes_must_be_positive(minutes: Any) -> None:
    with pytest.raises(fe.ConfigError, match="minutes between checkpoints must be"):
        fe.Checkpoint("one.pt", minutes=minutes)


@pytest.mark.parametrize("keep", [0, -1, True, 1.0])
def test_at_least_one_is_kept(keep: Any) -> None:
    with pytest.raises(fe.ConfigError, match="the number of checkpoints to keep must be"):
        fe.Checkpoint("one.pt", keep=keep)


# ---- what ends a training ----


class Breaking(LinearReader):
    """A read-out that gives NaN from a step on, or weights that are not finite."""

    def __init__(self, layer: fe.FeatureEmbedding, at: int, what: str) -> None:
        super().__init__(layer)
        self.at, self.what, self.steps = at, what, 0

    def forward(self, ids: Any) -> torch.Tensor:
        self.steps += self.training
        logits: torch.Tensor = super().forward(ids)
        if self.steps < self.at or not self.training:
            return logits
        if self.what == "loss":
            return logits * float("nan")
        self.weight.data[0] = float("inf")
        return logits


def breaking(path: Path, what: str, **settings: Any) -> str:
    net = Breaking(method("full")(0), 11, what)
    checkpoint = fe.Checkpoint(path, **settings)
    with pytest.raises(fe.RunError) as caught:
        fe.fit(net, lambda epoch: DATA, epochs=4, checkpoint=checkpoint)
    return str(caught.value)


def test_a_loss_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    message = breaking(path, "loss", minutes=ALWAYS)
    assert message == (
        "the loss is nan in stage 'train', epoch 2, step 11; "
        "the checkpoint of step 10 of stage 1 is kept"
    )
    net = LinearReader(method("full")(1))
    net.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert all(bool(one.isfinite().all()) for one in net.parameters())
    seen = breaking(tmp_path / "other.pt", "loss")  # found at the end of the epoch
    assert "epoch 2, step 11; the checkpoint of step 7" in seen


def test_a_loss_is_looked_at_within_an_epoch() -> None:
    net, steps = Breaking(method("full")(0), 30, "loss"), 0

    def batches(epoch: int) -> Iterator[TaskBatch]:
        nonlocal steps
        for steps in range(1, 100_000):  # noqa: B007
            yield DATA[0]

    with pytest.raises(fe.RunError, match="the loss is nan in stage 'train', epoch 1, step 30"):
        fe.fit(net, batches, epochs=1)
    assert steps <= 130


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    message = breaking(tmp_path / "one.pt", "weight", minutes=ALWAYS)
    assert message.startswith("weight is not finite after step 11; the checkpoint of step 10")
    state = torch.load(tmp_path / "one.pt", weights_only=True)
    assert state["at"]["step"] == 10


def test_batches_that_fail_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"

    def run(seed: int, broken: int | None) -> Any:
        def batches(epoch: int) -> Iterator[TaskBatch]:
            for number, batch in enumerate(DATA):
                if broken == 7 * epoch + number:
                    raise fe.DataError("shard 3 is corrupt")
                yield batch

        torch.manual_seed(seed)
        net = Dropping(method("full")(seed))
        return net, told(fe.fit(net, batches, epochs=3, checkpoint=path))

    for broken in (4, 7, 12):
        with pytest.raises(fe.DataError, match="shard 3 is corrupt"):
            run(0, broken)
        at = torch.load(path, weights_only=True)["at"]
        assert 7 * at["epoch"] + at["batch"] == broken
    found = run(9, None)
    path.unlink()
    same(run(0, None), found)


PROGRAM = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_checkpoint import CASES, Bomb
import featemb as fe

class Full(Bomb):
    def __call__(self, kind):
        if kind == self.kind:
            self.number -= 1
            if not self.number:  # from here on no file may be larger: writing fails in the kernel
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

try:
    CASES["one stage"](0, fe.Checkpoint(sys.argv[1], {always}), Full("batch", 11))
except fe.StorageError as error:
    print(error)
    sys.exit(5)
"""


def test_no_space_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    program = PROGRAM.format(tests=str(ROOT), always=ALWAYS)
    command = [sys.executable, "-c", program, str(path)]
    run = subprocess.run(
        command, cwd=ROOT.parent, capture_output=True, timeout=120, check=False, text=True
    )
    assert run.returncode == 5, run.stderr
    assert "one.pt' could not be written ([Errno 27] File too large)" in run.stdout
    assert "the last one is still whole: make space and start the same again" in run.stdout
    assert [one.name for one in tmp_path.iterdir()] == ["one.pt"]
    assert torch.load(path, weights_only=True)["at"]["step"] == 10
    case = CASES["one stage"]
    same(case(0), case(9, path))
