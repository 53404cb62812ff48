"""What compiled code computes with, in its archive beside it; and machines that it does not fit."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb.export import aoti, constants, seal
from featemb.export.archive import add_manifest


def archive(path: Path) -> Path:
    """An archive with nothing of ours."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("model/version", "1")
    return path


def kinds() -> dict[str, Tensor]:
    """Tensors of every type and form."""
    table = torch.randn(40, 6)
    types = (torch.float8_e4m3fn, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    return {
        **{str(dtype): torch.randn(7, 3).to(dtype) for dtype in types},
        "table": table,
        "part": table[10:20],
        "column": table[:, 2],
        "transposed": table.t(),
        "reshaped": table.view(-1),
        "repeated": torch.randn(5, 1).expand(5, 4),
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
    }


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    path = archive(tmp_path / "file")
    given = kinds()
    constants.add(path, given)
    found = constants.read(path)
    assert found.keys() == given.keys()
    for name, one in given.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape), name
        assert found[name].stride() == one.stride(), name
        assert torch.equal(found[name].float(), one.float()), name


def test_large_tensors_are_read_in_pieces(tmp_path: Path) -> None:
    path = archive(tmp_path / "file")
    given = {"large": torch.arange(2_500_001), "small": torch.arange(3)}
    constants.add(path, given)
    found = constants.read(path)
    assert all(torch.equal(found[name], one) for name, one in given.items())


def test_an_archive_without_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fe.FormatError, match=r"file' holds no data/weights/model\.safetensors"):
        constants.read(archive(tmp_path / "file"))
    with pytest.raises(fe.ExportError, match=r"'odd' is torch\.complex64; kept are F64, F32"):
        constants.add(tmp_path / "file", {"odd": torch.zeros(2, dtype=torch.complex64)})


def test_fewer_bytes_than_they_need_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "whole")
    constants.add(path, {"one": torch.arange(100)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "file", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[:-8] if name.endswith("safetensors") else "1")
    with pytest.raises(fe.FormatError, match="fewer bytes than it says"):
        constants.read(tmp_path / "file")


def test_code_for_another_processor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loader:
        """Says what torch's loader says of a file."""

        @staticmethod
        def load_metadata_from_package(path: str, model: str) -> dict[str, str]:
            return {"AOTI_MACHINE": machine, "AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}

    path = archive(tmp_path / "file.pt2")
    constants.add(path, {})
    add_manifest(path, {"format": 1})
    assert seal.is_sealed(path)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", Loader)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    machine = platform.machine()
    with pytest.raises(fe.FormatError, match=r"file\.pt2' is compiled for .* AVX512_VNNI"):
        aoti.read(path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    machine = "riscv64"
    with pytest.raises(fe.FormatError, match="compiled for riscv64"):
        aoti.read(path)


def test_the_vector_units_are_those_of_the_named_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    units = {name: aoti.processor(name)["cpp.simdlen"] for name in ("haswell", "x86-64", "native")}
    assert units == {"haswell": 256, "x86-64": 1, "native": None}
    assert aoti.processor("x86-64-v3") == {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert aoti.processor("armv8-a") == {"cpp.march": "armv8-a"}
