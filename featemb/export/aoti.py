"""Target ``aoti``: AOTInductor. A shared library of compiled code, for this kind of processor."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from featemb.errors import ConfigError, FormatError, nearest
from featemb.export.archive import add_manifest, manifest_of_archive, named_pt2
from featemb.export.artefact import Artefact
from featemb.export.job import Job
from featemb.export.pt2 import program
from featemb.export.quiet import quiet

# Hashes multiply 64-bit integers and mean the lowest bits. A C++ compiler may assume that signed
# products never overflow, and g++ -O3 does: the scores were wrong. The setting is one flag's value.
_CONFIG = {
    "cpp.enable_floating_point_contract_flag": "off -fwrapv",
    "aot_inductor.enable_line_tables": False,  # for debuggers: most of a small library
}


def write(job: Job, path: Path) -> None:
    """Compile and write an archive; the only option is ``march``, the processor to compile for.

    Raises:
        ConfigError: an option is unknown.
    """
    for name in job.options:
        if name != "march":
            raise ConfigError(f"aoti: unknown option {name!r}; {nearest(name, ['march'])}")
    chosen = {"cpp.march": job.options["march"]} if "march" in job.options else {}
    with quiet():
        torch._inductor.aoti_compile_and_package(
            program(job), package_path=str(path), inductor_configs={**_CONFIG, **chosen}
        )
    add_manifest(path, job.manifest)


def read(path: Path) -> Artefact:
    """Load an archive: its library is loaded into this process, so trust where it comes from.

    Raises:
        FormatError: it is corrupt, cut short, of another version, or not for this machine.
    """
    manifest = manifest_of_archive(path)
    try:
        with named_pt2(path) as named:
            loaded = torch._inductor.aoti_load_package(str(named))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{os.fspath(path)!r} does not load on this machine: {error}") from error

    def run(*tensors: Tensor) -> Tensor:
        found: Tensor = loaded(*(one.contiguous() for one in tensors))
        return found

    return Artefact(path, manifest, run)
