"""Frozen layers and their files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import featemb as fe
from featemb import package
from featemb.kernels import pack, unpack

SCHEMA = fe.Schema([fe.Feature("a", 300), fe.Feature("b", 40)])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    fe.embedding(SCHEMA, "unified(lookups=2)", ratio=4).freeze("int8").save(path)
    return path


def test_a_fresh_process_loads_every_codec(tmp_path: Path) -> None:
    layer = fe.embedding(SCHEMA, "hash", ratio=3)
    ids = torch.tensor([[7, 8], [299, 0]])
    wanted = {}
    for codec in fe.codecs():
        layer.freeze(codec).save(tmp_path / f"{codec}.st")
        wanted[codec] = float(fe.load(tmp_path / f"{codec}.st")(ids).double().sum())
    code = (
        "import sys, json, torch, featemb as fe; from pathlib import Path\n"
        "ids = torch.tensor([[7, 8], [299, 0]])\n"
        "print(json.dumps({p.stem: float(fe.load(p)(ids).double().sum())"
        " for p in Path(sys.argv[1]).glob('*.st')}))"
    )
    for first in ("int8", "fp32"):  # whichever file is first in its process
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / f"{first}.st").write_bytes((tmp_path / f"{first}.st").read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: wanted[name] for name in ("int8", "fp32")}


def test_flipped_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    answer = fe.load(saved)(torch.tensor([[1, 2]]))
    random = np.random.default_rng(0)
    broken = tmp_path / "broken.safetensors"
    for position in random.integers(0, len(raw), 120):
        changed = bytearray(raw)
        changed[position] ^= 1 << random.integers(0, 8)
        broken.write_bytes(bytes(changed))
        try:
            again = fe.load(broken)
        except fe.FeatembError:
            continue
        # padding and the spelling of JSON carry no information
        assert torch.equal(again(torch.tensor([[1, 2]])), answer)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, 0.99])
def test_truncated_files_are_refused(saved: Path, keep: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(fe.FormatError):
        fe.load(saved)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(fe.FormatError, match="nothing"):
        fe.load(tmp_path / "nothing")
    with pytest.raises(fe.FormatError, match="no folder"):
        fe.embedding(SCHEMA, "full").freeze().save(tmp_path / "none" / "x")


@pytest.mark.parametrize("number", [1, 4])
def test_other_formats_are_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layer"
    with monkeypatch.context() as patch:
        patch.setattr(package, "FORMAT", number)
        fe.embedding(SCHEMA, "full").freeze().save(path)
    with pytest.raises(fe.FormatError, match=f"format {number}, this version reads 2"):
        fe.load(path)


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        fe.embedding(SCHEMA, "full").freeze().save(saved)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


@given(st.integers(1, 9), st.integers(1, 20), st.sampled_from([8, 4, 2]))
def test_packing_reads_back(rows: int, width: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(rows * 100 + width)
    codes = torch.randint(0, 1 << bits, (rows, width), generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-width * bits // 8))
    assert torch.equal(unpack(packed, bits, width).long(), codes)


def test_every_flipped_byte_of_the_header_is_refused(saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for position in range(0, 8 + int.from_bytes(raw[:8], "little"), 3):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        broken.write_bytes(bytes(changed))
        with pytest.raises(fe.FormatError):
            fe.load(broken)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(fe.FormatError, match="no readable featemb header"):
        fe.load(tmp_path / "other.safetensors")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "layer.pt"
    torch.save(fe.embedding(SCHEMA, "full").state_dict(), path)
    with pytest.raises(fe.FormatError, match=r"no seal of featemb|not a readable"):
        fe.load(path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_saved_file_may_be_read_by_others_as_any_new_file(saved: Path) -> None:
    plain = saved.with_name("plain")
    plain.touch()
    assert saved.stat().st_mode == plain.stat().st_mode


def test_a_failure_while_writing_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = saved.read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of a")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        fe.embedding(SCHEMA, "full").freeze().save(saved)
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]
