"""What a process takes that loads a package: its bytes once, at any moment; and what others do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

import featemb as fe
from featemb import models
from featemb.files import replacing

SCHEMA = fe.Schema([fe.Feature("user", 300), fe.Feature("item", 90)])
MOST_GROWTH = 1.3
# Reads the kernel's own count: resident bytes now, and the most since the process began.
WATCH = """
import sys
import featemb as fe

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

import safetensors
fe.models.names()
before = resident("VmRSS")
net = fe.models.load(sys.argv[1])
loaded = resident("VmRSS") - before
import torch
ids = torch.stack([torch.randint(0, f.cardinality, (256,)) for f in net.embedding.schema.features])
for _ in range(20):
    net(ids.T)
print(loaded, resident("VmHWM") - before, net.memory().serving + net.net_bytes())
"""


def table(tmp_path: Path, name: str = "layer", seed: int = 0) -> fe.FrozenEmbedding:
    """A small layer, saved."""
    frozen = fe.embedding(SCHEMA, "full", dim=8, seed=seed).freeze()
    frozen.save(tmp_path / name)
    return frozen


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_a_process_takes_little_more_than_the_bytes(codec: str, tmp_path: Path) -> None:
    rows = {"fp32": 2_900_000, "int8": 6_000_000}[codec]
    schema = fe.Schema([fe.Feature("user", rows), fe.Feature("item", 50_000)])
    net = models.build("deepfm", embedding=fe.embedding(schema, "full", dim=16), hidden=(64,))
    models.save(net.freeze(codec), tmp_path / "net")
    del net
    told = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path / "net")], capture_output=True, text=True
    )
    assert not told.returncode, told.stderr
    loaded, most, held = (int(number) for number in told.stdout.split())
    assert held > 140e6
    assert loaded <= MOST_GROWTH * held, f"{loaded / held:.2f} times its bytes"
    assert most <= MOST_GROWTH * held, f"{most / held:.2f} times its bytes while it loads"


SERVE = """
import sys
import torch
import featemb as fe

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

before = resident("VmRSS")
net = fe.load(sys.argv[1])
loaded = resident("VmHWM") - before
ids = torch.stack([torch.randint(0, f.cardinality, (512,)) for f in net.schema.features], 1)
net(ids)
print(loaded, resident("VmHWM") - before, net.memory().serving + net.manifest["bytes"]["net"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compiled_code_has_its_tensors_once(tmp_path: Path) -> None:
    schema = fe.Schema([fe.Feature("user", 1_000_000), fe.Feature("item", 50_000)])
    net = models.build("deepfm", embedding=fe.embedding(schema, "full", dim=16), hidden=(64,))
    path = fe.export(net, tmp_path / "net", to="aoti").path
    told = subprocess.run([sys.executable, "-c", SERVE, str(path)], capture_output=True, text=True)
    assert not told.returncode, told.stderr
    loaded, most, held = (int(number) for number in told.stdout.split())
    assert held > 70e6
    assert 0 < path.stat().st_size - held <= 1024 + held / 100
    assert loaded <= MOST_GROWTH * held, f"{loaded / held:.2f} times its bytes while it loads"
    assert most <= MOST_GROWTH * held, f"{most / held:.2f} times its bytes with a call"


def test_a_file_that_is_overwritten_later_changes_nothing(tmp_path: Path) -> None:
    frozen = table(tmp_path)
    ids = torch.tensor([[0, 0], [299, 89]])
    held = fe.load(tmp_path / "layer")
    raw = (tmp_path / "layer").read_bytes()
    with open(tmp_path / "layer", "r+b") as file:
        file.write(bytes(len(raw)))
    assert torch.equal(held(ids), frozen(ids))
    os.truncate(tmp_path / "layer", 0)
    assert torch.equal(held(ids), frozen(ids))


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path)
    newer = table(tmp_path, "newer", seed=1)
    content = (tmp_path / "newer").read_bytes()
    opened, calls = safetensors.safe_open, []

    def replaced_first(path: str, **how: object) -> object:
        if not calls:
            calls.append(path)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        return opened(path, **how)

    monkeypatch.setattr(safetensors, "safe_open", replaced_first)
    ids = torch.tensor([[0, 0], [299, 89]])
    assert torch.equal(fe.load(tmp_path / "layer")(ids), newer(ids))
    assert calls


def test_a_model_that_is_loaded_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    net = models.build("deepfm", embedding=fe.embedding(SCHEMA, "full", dim=8), hidden=(8,))
    models.save(net.freeze("int8"), tmp_path / "net")
    script = (
        "import sys, featemb as fe\n"
        f"fe.models.load({str(tmp_path / 'net')!r})\n"
        "print(*[name for name in ('sympy', 'pandas', 'sklearn', 'rich') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not told.returncode, told.stderr
    assert told.stdout.split() == []
