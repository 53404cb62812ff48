"""Load and check exported files, whatever their target."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from featemb.errors import ConfigError, FormatError, nearest
from featemb.export.artefact import Artefact
from featemb.export.examples import batch_of, head, unpacked
from featemb.export.graph import Inputs
from featemb.export.job import difference

# Each module has write(job, path) and read(path).
TARGETS = ("safetensors", "pt2", "aoti", "onnx", "torchrec")


def target_module(name: str) -> Any:
    """Return a target's module.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; {nearest(str(name), TARGETS)}")
    return importlib.import_module(f"featemb.export.{name}")


def load_artefact(path: str | os.PathLike[str]) -> Artefact:
    """Load a file that `export` wrote.

    Raises:
        FormatError: the file is missing, cut short, corrupt, of a newer version, or another one.
    """
    found: Artefact = target_module(target_of(Path(path))).read(Path(path))
    return found


def target_of(path: Path) -> str:
    """Return the target of a file by its first bytes, and where these do not tell, its manifest.

    Raises:
        FormatError: the file is missing or of no target.
    """
    if not path.is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")
    with open(path, "rb") as file:
        first = file.read(9)
    if first[:2] == b"PK":
        from featemb.export.archive import manifest_of_archive

        return str(manifest_of_archive(path)["target"])
    if first[8:9] == b"{":
        from featemb import package

        return str(package.header_of(path).get("artefact", {}).get("target", "safetensors"))
    return "onnx"


def compare(found: Artefact, inputs: Inputs, wanted: Tensor, sizes: tuple[int, ...]) -> float:
    """Return the largest difference of a file's outputs from those wanted, over batch sizes."""
    batch = batch_of(inputs)
    return max(
        difference(found.run(head(inputs, size)), wanted[:size]) for size in sizes if size <= batch
    )


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        artefact: the loaded file.
        rows: example rows compared.
        worst: largest difference, ``|found - wanted| / max(1, |wanted|)``.
        tolerance: what is allowed.
        size: bytes of the file.
    """

    artefact: Artefact
    rows: int
    worst: float
    tolerance: float
    size: int


def check(path: str | os.PathLike[str]) -> Check:
    """Load an exported file and compare its outputs with those that were kept in it.

    Raises:
        FormatError: the file is missing, cut short, corrupt, of a newer version, or its outputs
            differ.
    """
    found = load_artefact(path)
    inputs = unpacked(found.manifest["examples"])
    wanted = unpacked(found.manifest["expected"])["output"]
    batch = batch_of(inputs)
    worst = compare(found, inputs, wanted, (1, batch))
    tolerance = float(found.manifest["tolerance"])
    if worst > tolerance:
        raise FormatError(
            f"{os.fspath(path)!r}: the outputs differ from those at its export by {worst:.3g}, "
            f"{tolerance:.3g} is allowed"
        )
    return Check(found, batch, worst, tolerance, Path(path).stat().st_size)
