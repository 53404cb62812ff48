"""Trainings that are killed and go on: bit for bit those that were not; files that are refused."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import Searching
from torch import Tensor, nn

import featemb as fe
from featemb.check.case import LinearReader, TaskBatch, mean_loss, task

DATA = task(7, batch=48)
HELD_OUT = task(3, batch=32)
ROOT = Path(__file__).resolve().parent


class Killed(BaseException):
    """Stands for the death of the process."""


class Dropping(LinearReader):
    """A linear read-out with dropout, which draws from torch's global generator."""

    def forward(self, ids: Any) -> Tensor:
        dropped: Tensor = nn.functional.dropout(self.layer(ids), 0.3, self.training)
        return dropped @ self.weight


@dataclass
class Case:
    """A layer, a model around it and arguments of `fit`."""

    make: Callable[[int], fe.FeatureEmbedding]
    reader: type[LinearReader] = Dropping
    arguments: dict[str, Any] = field(default_factory=dict)
    scores: list[float] | None = None

    def __call__(
        self, seed: int, path: Path | fe.Checkpoint | None = None, bomb: Any = None
    ) -> Any:
        """Train; return the model, and the history without times."""
        torch.manual_seed(seed)
        net = self.reader(self.make(seed))
        bomb = bomb or Bomb("", 0)

        def evaluate() -> float:
            bomb("evaluate")
            if self.scores is None:
                return -mean_loss(net, DATA)
            return self.scores[len(seen)]

        def batches(epoch: int) -> Iterator[TaskBatch]:
            bomb("epoch")
            for number in torch.randperm(7, generator=torch.Generator().manual_seed(epoch)):
                bomb("batch")
                yield DATA[number]

        def on_record(record: dict[str, Any]) -> None:
            seen.append(record)
            if "told" not in record:
                bomb("record")
                record["told"] = len(seen)

        seen: list[dict[str, Any]] = []
        arguments: dict[str, Any] = {"epochs": 3, "lr": 0.03, "lr_decay": 0.5, "patience": 2}
        history = fe.fit(
            net,
            batches,
            evaluate,
            held_out=lambda epoch: HELD_OUT[epoch % 2 :],
            on_record=on_record,
            checkpoint=path,
            **(arguments | self.arguments),
        )
        assert seen == history.records
        return net, told(history)


def told(history: fe.History) -> dict[str, Any]:
    """A history without what the clock says."""
    found = {k: v for k, v in asdict(history).items() if "seconds" not in k}
    kept = [{k: v for k, v in one.items() if k != "seconds"} for one in history.records]
    return found | {"records": kept}


@dataclass
class Bomb:
    """Kills at the n-th event of a kind."""

    kind: str
    number: int

    def __call__(self, kind: str) -> None:
        if kind == self.kind:
            self.number -= 1
            if not self.number:
                raise Killed


def same(one: Any, other: Any) -> None:
    """Two results are equal bit for bit."""
    assert one[1] == other[1]
    states = one[0].state_dict(), other[0].state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def method(spec: str) -> Callable[[int], fe.FeatureEmbedding]:
    return lambda seed: fe.check.Case(spec).layer(seed=seed)


PLATEAU = [0.5, 0.4, 0.6, 0.3, 0.2, 0.1]
CASES = {
    "one stage": Case(method("full")),
    "within an epoch": Case(method("hash"), arguments={"eval_every": 3}),
    "at the end of an epoch": Case(method("hash"), arguments={"eval_every": 7}),
    "stops early": Case(
        method("full"), scores=PLATEAU, arguments={"epochs": 9, "lr_decay": 0.1, "eval_every": 2}
    ),
    "annealing": Case(
        method("full"),
        scores=PLATEAU * 4,
        arguments={"epochs": 9, "lr_decay": 1.0, "anneal": 0.4, "eval_every": 4},
    ),
    "all kinds of stages, annealing": Case(
        Searching, arguments={"lr_decay": 1.0, "anneal": 0.4, "eval_every": 3}
    ),
    "adagrad": Case(
        method("unified(lookups=2)"),
        LinearReader,
        {"optimizer": "row_adagrad", "net_weight_decay": 0.1},
    ),
    "dense adam": Case(method("full"), arguments={"optimizer": "dense_adam", "weight_decay": 0.01}),
    "sgd": Case(method("full"), arguments={"optimizer": "row_sgd"}),
    "magnitude": Case(method("magnitude"), arguments={"eval_every": 4}),
    "dedup": Case(method("dedup")),
    "cce": Case(method("cce")),
    "cafe": Case(method("cafe")),
    "adapt": Case(method("adapt")),
    "all kinds of stages": Case(Searching, arguments={"eval_every": 4}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def killed(case: Case, path: Path | fe.Checkpoint, bomb: Bomb, seed: int = 0) -> Any:
    """Train until the bomb goes off, then go on in a new process, as it were."""
    try:
        return case(seed, path, bomb)
    except Killed:
        return None


def check_kills(case: Case, kind: str, numbers: Iterable[int], folder: Path) -> None:
    straight = case(0)
    for number in numbers:
        path = folder / f"{number}.pt"
        if killed(case, path, Bomb(kind, number)) is not None:
            break
        # what the checkpoint does not hold would come from another seed
        same(straight, case(9 if path.exists() else 0, path))
    assert number > 2


@every_case
def test_a_killed_training_goes_on_exactly(case: Case, tmp_path: Path) -> None:
    check_kills(case, "evaluate", count(1, 3 if case.make is Searching else 2), tmp_path)


@pytest.mark.parametrize("kind", ["record", "epoch"])
@pytest.mark.parametrize("name", ["within an epoch", "all kinds of stages"])
def test_killed_elsewhere(kind: str, name: str, tmp_path: Path) -> None:
    check_kills(CASES[name], kind, count(1, 2), tmp_path)


@every_case
def test_killed_at_every_evaluation(case: Case, tmp_path: Path) -> None:
    straight, path = case(0), tmp_path / "one.pt"
    found = None
    for life in range(40):
        seed = life if path.exists() else 0
        found = killed(case, path, Bomb("record", 2), seed)
        if found is not None:
            break
    assert found is not None
    assert life > 1
    same(straight, found)


def test_killed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    check_kills(CASES["all kinds of stages"], "batch", (1, 6, 15, 25, 33), tmp_path)


def test_a_finished_training_is_read_again(tmp_path: Path) -> None:
    case, path = CASES["all kinds of stages"], tmp_path / "one.pt"
    straight = case(0, path)
    again = case(5, path, Bomb("batch", 1))
    same(straight, again)
    assert not again[0].training


def test_more_epochs_go_on(tmp_path: Path) -> None:
    short, path = Case(method("full"), arguments={"epochs": 2, "patience": 9}), tmp_path / "one.pt"
    assert killed(short, path, Bomb("epoch", 2)) is None
    long = Case(method("full"), arguments={"epochs": 4, "patience": 9})
    same(long(0), long(3, path))


def test_times_go_on(tmp_path: Path) -> None:
    net, path = LinearReader(method("full")(0)), tmp_path / "one.pt"
    first = fe.fit(net, lambda epoch: DATA, lambda: 0.0, epochs=2, checkpoint=path)
    assert first.seconds > first.evaluate_seconds > 0
    assert first.step_seconds > 0
    again = fe.fit(net, lambda epoch: DATA, lambda: 0.0, epochs=2, checkpoint=path)
    assert again.seconds >= first.records[-1]["seconds"]
    assert again.step_seconds == first.step_seconds


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_checkpoint import CASES, Bomb

class Kill(Bomb):
    def __call__(self, kind):
        if kind == self.kind:
            self.number -= 1
            if not self.number:
                os.kill(os.getpid(), signal.SIGKILL)

CASES["all kinds of stages"](0, Path(sys.argv[1]), Kill("record", 5))
"""


def test_a_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    command = [sys.executable, "-c", PROGRAM.format(tests=str(ROOT)), str(path)]
    run = subprocess.run(command, cwd=ROOT.parent, capture_output=True, timeout=120, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    case = CASES["all kinds of stages"]
    same(case(0), case(9, path))


# ---- files ----


def written(tmp_path: Path) -> Path:
    path = tmp_path / "one.pt"
    CASES["one stage"](0, path)
    return path


def refused(path: Path, match: str, case: str = "one stage") -> None:
    """The file raises FormatError, and so does nothing else."""
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(fe.FormatError, match=match):
        CASES[case](0, path)
    assert (path.read_bytes() if path.is_file() else b"") == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "not a readable checkpoint")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        members = [one for one in file.infolist() if one.file_size > 8]
    for member in members:
        name, extra = struct.unpack_from("<HH", whole, member.header_offset + 26)
        damaged = bytearray(whole)
        damaged[member.header_offset + 30 + name + extra + member.file_size // 2] ^= 0x10
        path.write_bytes(bytes(damaged))
        refused(path, "not a readable checkpoint")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch", "inside"])
def test_code_in_a_file_is_not_run(form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "mark"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif form == "inside":
        CASES["one stage"](0, path)
        whole = torch.load(path, weights_only=True)
        torch.save(whole | {"history": {"records": [Evil(mark)]}}, path)
    else:
        new = form == "torch"
        torch.save({"format": 1, "at": Evil(mark)}, path, _use_new_zipfile_serialization=new)
    refused(path, "not a readable checkpoint")
    assert not mark.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    path.write_text("hello")
    refused(path, "not a readable checkpoint")
    torch.save(torch.zeros(3), path)
    refused(path, "not a checkpoint of format 1")
    torch.save({"format": 99}, path)
    refused(path, "not a checkpoint of format 1")
    torch.save({"format": 1}, path)
    refused(path, "not a checkpoint of featemb.fit")
    method("full")(0).freeze().save(path)
    refused(path, "not a readable checkpoint")
    path.unlink()
    path.mkdir()
    refused(path, "not a readable checkpoint")
    refused(tmp_path / "nowhere" / "one.pt", "folder does not exist")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"at": "x"}, "not a checkpoint of featemb.fit"),
        ({"at": {"stage": 0, "else": 1}}, "not a checkpoint of featemb.fit"),
        ({"history": 3}, "not a checkpoint of featemb.fit"),
        ({"settings": None}, "not a checkpoint of featemb.fit"),
        ({"model": {}}, "of another model"),
        ({"model": 7}, "of another model"),
        ({"random": {}}, "of another model"),
        ({"random": {"cpu": torch.zeros(3)}}, "of another model"),
    ],
)
def test_parts_of_a_checkpoint_are_checked(
    changed: dict[str, Any], match: str, tmp_path: Path
) -> None:
    path = written(tmp_path)
    torch.save(torch.load(path, weights_only=True) | changed, path)
    refused(path, match)


def test_optimizers_of_another_model_are_refused(tmp_path: Path) -> None:
    case, path = Case(method("full"), arguments={"epochs": 9, "patience": 9}), tmp_path / "one.pt"
    assert killed(case, path, Bomb("epoch", 3)) is None
    whole = torch.load(path, weights_only=True)
    for states in ([], [{}], [{"state": {}, "param_groups": []}], 5):
        torch.save(whole | {"optimizers": states}, path)
        with pytest.raises(fe.FormatError, match="of another model"):
            case(0, path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    refused(path, r"stages was \['train'\] and is", "magnitude")
    refused(path, "optimizer was 'row_adam' and is 'row_sgd' now", "sgd")
    torch.save(torch.load(path, weights_only=True) | {"stages": ["train"]}, path)
    net = LinearReader(fe.check.Case("full", dim=4).layer())
    with pytest.raises(fe.FormatError, match="of another model"):
        fe.fit(net, lambda epoch: DATA, lr=0.03, lr_decay=0.5, checkpoint=path)


def test_a_refused_checkpoint_leaves_the_model_alone(tmp_path: Path) -> None:
    path = written(tmp_path)
    net = LinearReader(method("full")(4))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(fe.FormatError, match=r"lr was 0\.03 and is 0\.5 now"):
        fe.fit(net, lambda epoch: DATA, lr=0.5, lr_decay=0.5, checkpoint=path)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, path = CASES["one stage"], tmp_path / "one.pt"
    assert killed(case, path, Bomb("epoch", 2)) is None
    whole = path.read_bytes()

    def half(state: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(fe.StorageError, match=r"disk is full.*the last one is still whole"):
        case(0, path)
    assert path.read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir()] == ["one.pt"]
