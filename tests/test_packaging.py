"""What gets installed, what importing costs, and what the repository must not name."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "datasets", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# What `import featemb` must not load, unless torch itself did.
HEAVY = {
    *("pandas", "pyarrow", "sklearn", "scipy", "statsmodels", "matplotlib", "plotly", "typer"),
    *("rich", "torchrec", "fbgemm_gpu", "tensordict", "onnx", "onnxruntime", "safetensors"),
    *("torch._dynamo", "torch._inductor", "torch.onnx", "sympy"),
    *("featemb.models", "featemb.datasets", "featemb.benchmarks", "featemb.cli"),
}
IMPORT_SECONDS = 0.3


def tracked() -> list[Path]:
    """Files of the repository, new ones included; links are not followed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def python(code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the repository's files, as a release is."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def installed_name(path: Path) -> str:
    """Where a source file lands in the wheel."""
    relative = path.relative_to(ROOT).as_posix()
    return relative if relative.startswith("featemb/") else f"featemb/{relative}"


def test_wheel_holds_every_module_once(wheel: zipfile.ZipFile) -> None:
    inside = [ROOT / folder for folder in ("featemb", *FOLDERS)]
    sources = {
        installed_name(path)
        for path in tracked()
        if path.suffix == ".py" and any(folder in path.parents for folder in inside)
    }
    packed = [name for name in wheel.namelist() if name.endswith(".py")]
    assert sorted(packed) == sorted(sources), "mend [tool.setuptools] packages in pyproject.toml"


def test_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"featemb"}


def test_wheel_holds_every_file_that_the_code_reads(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "featemb/py.typed" in names
    data = [path for path in tracked() if ROOT / "datasets" / "data" in path.parents]
    assert any(path.suffix == ".parquet" for path in data), "the demo's data set is part of us"
    inside = [ROOT / "featemb", *(ROOT / folder for folder in FOLDERS)]
    read = {".toml", ".html", ".js", ".css", ".jinja", ".parquet", ".json"}
    others = {
        installed_name(path)
        for path in tracked()
        if path.suffix in read and any(folder in path.parents for folder in inside)
    }
    assert others <= names, "mend [tool.setuptools.package-data] in pyproject.toml"


def test_wheel_declares_the_command_and_the_extras(wheel: zipfile.ZipFile) -> None:
    (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "featemb = featemb.cli:main" in wheel.read(points).decode()
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    assert extras >= {"torchrec", "gpu", "export", "report", "dev"}


def test_wheel_works_where_there_is_no_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = (
        "import featemb as fe, pathlib\n"
        "for module in (fe, fe.models, fe.datasets, fe.benchmarks):\n"
        "    assert 'site' in pathlib.Path(module.__file__).parts, module.__file__\n"
        "assert fe.methods() and fe.models.names() and fe.datasets.names()\n"
        "fe.check.check_method('unified(lookups=2)')\n"
    )
    run = python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_top_level_folders_refuse_their_short_name(folder: str) -> None:
    run = python(f"import sys; sys.path.insert(0, '.'); import {folder}", cwd=ROOT)
    assert run.returncode != 0
    assert "ImportError" in run.stderr
    assert f"featemb.{folder}" in run.stderr
    assert "-P" in run.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_parts_load_by_their_full_name(folder: str) -> None:
    run = python(f"import featemb; featemb.{folder}; import featemb.{folder}", cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_import_loads_torch_and_numpy_only() -> None:
    code = (
        "import json, sys, time\n"
        "import torch, numpy\n"
        "before = set(sys.modules)\n"
        "import featemb\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    run = python(code, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    loaded = set(json.loads(run.stdout))
    assert not loaded & HEAVY


def test_import_is_quick() -> None:
    """The median of five, in processor time: other work on the machine must not count."""
    code = (
        "import time, torch, numpy\n"
        "start = time.process_time(); import featemb; print(time.process_time() - start)\n"
    )
    seconds = statistics.median(float(python(code, cwd=ROOT).stdout) for _ in range(5))
    assert seconds < IMPORT_SECONDS, f"import featemb takes {seconds:.2f} s beyond torch"


def test_works_without_torchrec_and_fbgemm() -> None:
    code = (
        "import sys\n"
        "for name in ('torchrec', 'fbgemm_gpu', 'tensordict'):\n"
        "    sys.modules[name] = None\n"
        "import torch, featemb as fe\n"
        "schema = fe.Schema([fe.Feature('user', 100), fe.Feature('item', 50)])\n"
        "for method in fe.methods():\n"
        "    fe.parse(method)\n"
        "layer = fe.embedding(schema, 'unified(lookups=2)', dim=8, ratio=4, seed=0)\n"
        "net = fe.models.build('dcnv2', embedding=layer, numeric=0, hidden=[8])\n"
        "net(torch.tensor([[1, 2], [3, 4]])).sum().backward()\n"
        "layer.freeze()(torch.tensor([[1, 2]]))\n"
        "fe.datasets.names()\n"
    )
    run = python(code, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def pins(path: Path) -> dict[str, str]:
    """Normalised name -> version of a pinned set."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if text:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{path.name}: {text} is not an exact pin"
            found[re.sub(r"[-_.]+", "-", requirement.name).lower()] = specifier.version
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.stem
)
def test_pins_satisfy_the_declared_dependencies(path: Path) -> None:
    """All but TorchRec's and FBGEMM's CUDA packages, which the CPU set replaces."""
    known, extras = pins(path), PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"]]
    for extra in ("torchrec", "export", "report", "dev"):
        declared += extras[extra]
    for text in declared:
        wanted = Requirement(text)
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        assert name in known, f"{path.name} pins no {name}"
        assert wanted.specifier.contains(known[name]), f"{path.name}: {name}=={known[name]}"


def test_this_environment_is_the_pinned_one() -> None:
    """A warning sign, not a rule: only for environments that `make setup` made."""
    if not (Path(sys.prefix) / ".featemb-setup").exists():
        pytest.skip("not an environment of make setup")
    name = "cpu.txt" if sys.version_info >= (3, 11) else "cpu-py310.txt"
    for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text or (Requirement(text).marker and not Requirement(text).marker.evaluate()):
            continue
        wanted = Requirement(text)
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            pytest.fail(f"{wanted.name} is pinned and not installed: run make setup")
        assert wanted.specifier.contains(found), f"{wanted} is pinned, {found} is installed"


# Written in pieces, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a package registry's host": r"(?:[\w-]+\.)*(?:"
    + r"|".join(
        host.replace("_", r"\.")
        for host in (
            "pypi_org",
            "pythonhosted_org",
            "npmjs_org",
            "anaconda_org",
            "download_pytorch_org",
        )
    )
    + ")",
    "an absolute path of one machine": r"(?<![\w.)}])/(?:"
    + "|".join(("wo" + "rk", "fa" + "rm", "ro" + "ot", "ho" + "me", "Us" + "ers"))
    + r")/\w",
    "an unfinished place": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
}


def text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("what", FORBIDDEN)
def test_repository_names_nothing_of_the_place_it_was_written_in(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked():
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, f"{what}: " + "; ".join(found)
