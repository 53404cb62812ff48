"""Target ``aoti``: AOTInductor. A shared library of compiled code, for this kind of processor."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from featemb.errors import ConfigError, ExportError, FormatError, nearest
from featemb.export.archive import add_manifest, manifest_of_archive
from featemb.export.artefact import Artefact
from featemb.export.job import Job
from featemb.export.pt2 import program

# Hashes multiply 64-bit integers and mean the lowest bits. A C++ compiler may assume that signed
# products never overflow, and g++ -O3 does: the scores were wrong. The setting is one flag's value.
_WRAP = {"cpp.enable_floating_point_contract_flag": "off -fwrapv"}


def write(job: Job, path: Path) -> None:
    """Compile and write an archive; the only option is ``march``, the processor to compile for.

    Raises:
        ConfigError: an option is unknown.
        ExportError: the compiler fails.
    """
    for name in job.options:
        if name != "march":
            raise ConfigError(f"aoti: unknown option {name!r}; {nearest(name, ['march'])}")
    chosen = {"cpp.march": job.options["march"]} if "march" in job.options else {}
    try:
        torch._inductor.aoti_compile_and_package(
            program(job), package_path=str(path), inductor_configs=_WRAP | chosen
        )
    except Exception as error:  # the compiler and torch's own code generator raise many kinds
        raise ExportError(f"aoti: the model does not compile: {error}") from error
    add_manifest(path, job.manifest)


def read(path: Path) -> Artefact:
    """Load an archive: its library is loaded into this process, so trust where it comes from.

    Raises:
        FormatError: it is corrupt, cut short, of another version, or not for this machine.
    """
    manifest = manifest_of_archive(path)
    try:
        loaded = torch._inductor.aoti_load_package(str(path))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{os.fspath(path)!r} does not load on this machine: {error}") from error

    def run(*tensors: Tensor) -> Tensor:
        found: Tensor = loaded(*(one.contiguous() for one in tensors))
        return found

    return Artefact(path, manifest, run)
