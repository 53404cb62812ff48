"""`fe.convert` on layers and models of featemb, in files, and on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import model_cases
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import featemb as fe
from featemb import models
from featemb.cli import main
from featemb.memory import module_bytes

COUNTS = {name: np.arange(size, 0, -1) ** 2 for name, size in model_cases.CARDINALITIES.items()}


def counted_net(method: str = "full", dim: int = 8) -> models.CTRModel:
    features = [
        fe.Feature(k, 40 * v, counts=np.repeat(COUNTS[k], 40))
        for k, v in model_cases.CARDINALITIES.items()
    ]
    layer = fe.embedding(fe.Schema(features, model_cases.COLUMNS), method, dim=dim, seed=3)
    return models.build("deepfm", embedding=layer, hidden=[8])


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4", "pq(parts=2, bits=4)", "svd", "binary"])
def test_a_model_of_ours_gives_what_freezing_gives(codec: str) -> None:
    net = counted_net()
    ids, numeric = model_cases.batch()
    wanted = net.freeze(codec)(ids, numeric)
    small = fe.convert(net, codec)
    assert torch.equal(small(ids, numeric), wanted)
    assert small.memory().serving == net.freeze(codec).memory().serving
    assert fe.conversion(small).after == small.memory().serving
    assert fe.conversion(small).before == 4 * 9 * 40 * sum(model_cases.CARDINALITIES.values())
    # and so does its plain frozen form, which knows no counts unless it is given them
    again = fe.convert(net.freeze(), codec, schema=net.embedding.schema)
    assert torch.equal(again(ids, numeric), wanted)


def test_layers_within_a_limit() -> None:
    net = counted_net()
    report = fe.conversion(fe.convert(net, ["int8", "int4", "int2"], ratio=5))
    assert report.ratio >= 5
    assert [one.name for one in report.tables] == ["embedding", "companion"]
    assert report.tables[0].codec in ("int4", "int2")


def test_every_kind_of_frozen_layer_is_looked_into() -> None:
    net = counted_net("unified(lookups=2, rows=500)")
    ids, numeric = model_cases.batch()
    small = fe.convert(net.freeze(), "int8")
    assert torch.equal(small(ids, numeric), net.freeze("int8")(ids, numeric))
    with pytest.raises(fe.ConfigError, match="'embedding': its rows are stored by a codec already"):
        fe.convert(small, "int8")


class Wide(nn.Module):
    """Tables of both kinds, a tied one, a layer of ours, and a net with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(300, 8, padding_idx=0)
        self.again = nn.Embedding(300, 8)
        self.again.weight = self.user.weight
        self.bag = nn.EmbeddingBag(200, 4, mode="max", padding_idx=2)
        schema = fe.Schema([fe.Feature("city", 150)])
        self.city = fe.embedding(schema, "full", dim=4)
        self.norm = nn.BatchNorm1d(24)
        self.out = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.user(x[:, 0]), self.again(x[:, 1]), self.bag(x), self.city(x[:, :1] % 150)]
        return self.out(self.norm(torch.cat(found, 1)))[:, 0]


def wide(seed: int = 0) -> Wide:
    torch.manual_seed(seed)
    made = Wide()
    for _ in range(3):
        made(torch.randint(0, 200, (64, 3)))
    return made.eval()


IDS = torch.arange(150).view(50, 3)


@pytest.mark.parametrize("codec", [one for one in fe.codecs() if one != "weighted"])
def test_files_hold_converted_models(codec: str, tmp_path: Path) -> None:
    small = fe.convert(wide(), codec, skip="bag" if codec == "rq" else ())
    wanted, path = small(IDS), tmp_path / "small.safetensors"
    fe.save_converted(small, path)
    again = fe.load_converted(path, wide(seed=1))
    assert torch.equal(again(IDS), wanted)
    assert again.user.table is again.again.table
    assert fe.conversion(again) == fe.conversion(small)
    fe.save_converted(again, tmp_path / "twice.safetensors")
    twice = fe.load_converted(tmp_path / "twice.safetensors", wide(seed=2))
    assert torch.equal(twice(IDS), wanted)
    report = fe.conversion(small)
    assert path.stat().st_size < (report.after + report.rest) * 1.01 + 8192


def test_files_are_loaded_into_models_without_memory(tmp_path: Path) -> None:
    small = fe.convert(wide(), "int8")
    fe.save_converted(small, tmp_path / "small.safetensors")
    with torch.device("meta"):
        empty = Wide()
    made = fe.load_converted(tmp_path / "small.safetensors", empty)
    assert torch.equal(made(IDS), small(IDS))
    assert not any(one.is_meta for one in (*made.parameters(), *made.buffers()))


def test_files_of_other_models_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    fe.save_converted(fe.convert(wide(), "int8"), path)
    other = wide()
    other.out = nn.Linear(24, 2)
    with pytest.raises(fe.FormatError, match=r"tensor 'out.weight' is"):
        fe.load_converted(path, other)
    assert isinstance(other.user, nn.Embedding)
    other = wide()
    other.user = nn.Embedding(301, 8)
    with pytest.raises(fe.FormatError, match="'user' is 300 x 8 in the file"):
        fe.load_converted(path, other)
    other = wide()
    other.bag = nn.Embedding(200, 4)  # type: ignore[assignment]
    with pytest.raises(fe.FormatError, match="'bag' is a Embedding"):
        fe.load_converted(path, other)
    other = wide()
    other.more = nn.Linear(2, 2)
    with pytest.raises(fe.FormatError, match=r"only the model has a tensor 'more.bias'"):
        fe.load_converted(path, other)
    with pytest.raises(fe.FormatError, match="no module 'user'"):
        fe.load_converted(path, nn.Linear(2, 2))
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.choice(len(data), 40, replace=False):
        damaged = data.copy()
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(fe.FormatError):
            fe.load_converted(path, wide())
    path.write_bytes(data)
    with pytest.raises(fe.FormatError, match=r"featemb.load_converted reads it"):
        fe.load(path)
    path.write_bytes(data[:-100])
    with pytest.raises(fe.FormatError):
        fe.load_converted(path, wide())
    with pytest.raises(fe.FormatError, match="no folder"):
        fe.save_converted(fe.convert(wide(), "int8"), tmp_path / "no" / "small.safetensors")
    with pytest.raises(fe.ConfigError, match=r"not what featemb.convert returned"):
        fe.save_converted(wide(), path)


FACTORY = '''
"""A model that a user has, for the command line."""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(400, 8), nn.Embedding(60, 8)

    def forward(self, user, item):
        return (self.user(user) * self.item(item)).sum(1, keepdim=True)


def build():
    return Net()


def nothing():
    return 3


def batches(path, label="click"):
    table = torch.load(path, weights_only=True)
    for at in range(0, len(table[label]), 100):
        rows = slice(at, at + 100)
        yield (table["user"][rows], table["item"][rows]), table[label][rows]
'''


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a factory, its weights in both forms, and rows to score."""
    name = f"own_{os.urandom(4).hex()}"
    (tmp_path / f"{name}.py").write_text(FACTORY, "utf-8")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    user, item = torch.randn(400, 8), torch.randn(60, 8)
    state = {"user.weight": user, "item.weight": item}
    save_file(state, "weights.safetensors")
    torch.save(state, "weights.pt")
    rows = {"user": torch.randint(0, 400, (2000,)), "item": torch.randint(0, 60, (2000,))}
    score = (user[rows["user"]] * item[rows["item"]]).sum(1)
    rows["click"] = (score + torch.randn(2000) * 3 > 0).float()
    rows["other"] = 1 - rows["click"]
    torch.save(rows, "rows.pt")
    return tmp_path / name


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert exited.value.code in (0, None), err
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["convert", *map(str, arguments)])
    assert exited.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("weights", ["weights.safetensors", "weights.pt"])
def test_a_factory_on_the_command_line(
    weights: str, factory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{factory.name}:build"
    text = said(capsys, model, "--weights", weights, "--data", "rows.pt", "--out", "s.safetensors")
    assert "14,720" in text  # bytes before
    assert "AUC before 0.8" in text
    assert "2,000 test rows" in text
    found = json.loads(
        said(
            capsys,
            model,
            "--weights",
            weights,
            "--codec",
            "*item=int4",
            "--data",
            "rows.pt",
            "--label",
            "other",
            "--json",
        )
    )
    assert [one["codec"] for one in found["tables"]] == [None, "int4"]
    assert found["before"] == 4 * 8 * 460
    assert found["after"] == 4 * 8 * 400 + 60 * 4 + 4
    assert found["auc"]["before"]["value"] < 0.2
    assert abs(found["auc"]["difference"]["value"]) < 0.02
    import importlib

    made = importlib.import_module(factory.name)
    net = made.build()
    net.load_state_dict(torch.load("weights.pt", weights_only=True))
    small = fe.load_converted("s.safetensors", made.build())
    ids = torch.arange(60)
    assert torch.equal(small(ids, ids), fe.convert(net, "int8")(ids, ids))


def test_wrong_factories_are_told(factory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = factory.name
    assert "neither a run's folder, nor a package, nor a factory" in refused(capsys, name)
    assert "cannot import 'no_such_place'" in refused(capsys, "no_such_place:build")
    assert "no function 'made'" in refused(capsys, f"{name}:made")
    assert "must return a torch.nn.Module, got int" in refused(capsys, f"{name}:nothing")
    assert "is not a file" in refused(capsys, f"{name}:build", "--weights", "none.pt")
    Path("bad.pt").write_bytes(b"no tensors")
    assert "no readable file" in refused(capsys, f"{name}:build", "--weights", "bad.pt")
    save_file({"user.weight": torch.zeros(4, 8)}, "few.safetensors")
    message = refused(capsys, f"{name}:build", "--weights", "few.safetensors")
    assert "does not hold the model's weights" in message
    assert "several --codec need names" in refused(
        capsys, f"{name}:build", "--codec", "int8", "--codec", "int4"
    )
    assert "need at least" in refused(capsys, f"{name}:build", "--budget", "10")


def test_nothing_is_unpickled(factory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path("pwned").touch, ())

    torch.save({"user.weight": Evil()}, "evil.pt")
    assert "no readable file of tensors" in refused(
        capsys, f"{factory.name}:build", "--weights", "evil.pt"
    )
    assert not Path("pwned").exists()


def test_a_run_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from featemb.benchmarks import sources
    from featemb.benchmarks.config import RunConfig
    from featemb.benchmarks.run import run_one

    config = RunConfig(
        data="nycflights13_demo",
        model="deepfm",
        dim=8,
        epochs=2,
        rows=20000,
        lr=3e-3,
        model_config={"hidden": [16]},
    )
    record = run_one(config, tmp_path, save_model=True)
    folder, out = tmp_path / record["run_id"], tmp_path / "small.safetensors"
    found = json.loads(said(capsys, folder, "--codec", "int8", "--out", out, "--json"))
    told = record["metrics"]["test"]["auc"]
    assert found["auc"]["before"] == pytest.approx(told, abs=1e-6)
    assert abs(found["auc"]["difference"]["value"]) < 1e-3
    assert found["auc"]["rows"] == record["data"]["rows"]["test"]
    assert found["before"] == record["bytes"]["serving"]
    # the file is one of featemb's models, and scores as the run's model does in int8
    net = models.load(out)
    assert sum(sum(module_bytes(one).values()) for one in net.embeddings()) == found["after"]
    whole = models.load(folder / "model.safetensors")
    split = sources.load(config).splits["test"]
    batch = next(iter(split.batches(64, shuffle=False, seed=0, epoch=0)))
    small = fe.convert(whole, "int8")
    assert torch.equal(net(batch.ids, batch.numeric), small(batch.ids, batch.numeric))
    text = said(capsys, folder, "--ratio", "6", "--no-auc")
    assert "AUC" not in text
    assert "neither a data set nor a file" in refused(capsys, folder, "--data", "nowhere.csv")
    assert "belong to a factory" in refused(capsys, folder, "--weights", "x.pt")
    (folder / "model.safetensors").unlink()
    assert "train it with --save-model" in refused(capsys, folder)
