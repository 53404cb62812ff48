"""Target ``aoti``: AOTInductor. A shared library of compiled code, for this kind of processor."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb.errors import ConfigError, FormatError, nearest
from featemb.export import constants
from featemb.export.archive import add_manifest, manifest_of_archive, named_pt2, tidy
from featemb.export.artefact import Artefact
from featemb.export.job import Job
from featemb.export.pt2 import program
from featemb.export.quiet import quiet

# Hashes multiply 64-bit integers and mean the lowest bits. A C++ compiler may assume that signed
# products never overflow, and g++ -O3 does: the scores were wrong. The setting is one flag's value.
_CONFIG = {
    "cpp.enable_floating_point_contract_flag": "off -fwrapv",
    "aot_inductor.enable_line_tables": False,  # for debuggers: most of a small library
    "aot_inductor.package": True,
    # Gives the tensors beside the code; no pickle is written: see featemb.export.constants.
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.package_constants_on_disk_format": "pickle_weights",
}
_CODE = "/data/aotinductor/"
# Code uses the vector units of this machine, whatever the compiler is told: these bits in a vector
# are what a processor has that is named; 1 is none, None is this machine's.
_BITS = {"native": None, "x86-64-v4": None, "x86-64-v2": 1, "x86-64": 1}
_AVX2_BITS = 256


def write(job: Job, path: Path) -> None:
    """Compile and write an archive; the only option is ``march``, the processor to compile for.

    Raises:
        ConfigError: an option is unknown.
    """
    for name in job.options:
        if name != "march":
            raise ConfigError(f"aoti: unknown option {name!r}; {nearest(name, ['march'])}")
    from torch._inductor.package.package import package_aoti

    chosen = processor(job.options["march"]) if "march" in job.options else {}
    with quiet():
        code, tensors = _compiled(program(job), {**_CONFIG, **chosen})
        package_aoti(str(path), code)
    tidy(path, lambda name: _CODE in name)
    constants.add(path, tensors)
    add_manifest(path, job.manifest)


def processor(march: str) -> dict[str, Any]:
    """Return the compiler's settings for a processor, by a name that ``-march`` takes."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"cpp.march": march}
    return {"cpp.march": march, "cpp.simdlen": _BITS.get(march, _AVX2_BITS)}


def _compiled(traced: Any, settings: dict[str, Any]) -> tuple[list[Any], dict[str, Tensor]]:
    """Return the files of compiled code, and the tensors it takes, also the compiler's own."""
    args, kwargs = traced.example_inputs
    made: Any = torch._inductor.aot_compile(
        traced.module(check_guards=False), args, kwargs, options=settings
    )
    (held,) = (one for one in made if isinstance(one, dict))
    code = [one for one in made if isinstance(one, str)]
    return code, {name: tensor.detach() for name, (tensor, _) in held.items()}


def _loader(path: Path) -> Any:
    """Return torch's loader; the function that wraps it imports the compiler, 80 MB of it."""
    return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)


def read(path: Path) -> Artefact:
    """Load an archive: its library is loaded into this process, so trust where it comes from.

    Raises:
        FormatError: it is corrupt, cut short, of another version, or not for this machine.
    """
    manifest = manifest_of_archive(path)
    held = constants.read(path)
    try:
        with named_pt2(path) as named:
            _check_machine(path, named)
            loader = _loader(named)
        loader.load_constants(held, False, True, True)  # all of them, lent and not copied
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{os.fspath(path)!r} does not load on this machine: {error}") from error

    def run(*tensors: Tensor, lent: Mapping[str, Tensor] = held) -> Tensor:
        found: Tensor = loader.boxed_run([one.contiguous() for one in tensors])[0]
        return found

    return Artefact(path, manifest, run)


def _check_machine(path: Path, named: Path) -> None:
    """Refuse code of another kind of processor, which would end the process at its first call.

    Raises:
        FormatError: names what it was compiled for.
    """
    torchs: Any = torch._C._aoti.AOTIModelPackageLoader
    about = torchs.load_metadata_from_package(str(named), "model")
    units = about.get("AOTI_CPU_ISA", "")
    fits = about.get("AOTI_MACHINE", platform.machine()) == platform.machine()
    for unit, has in (
        ("AVX512", torch.cpu._is_avx512_supported),
        ("AVX2", torch.cpu._is_avx2_supported),
    ):
        fits = fits and (unit not in units or has())
    if not fits:
        raise FormatError(
            f"{os.fspath(path)!r} is compiled for {about.get('AOTI_MACHINE')} with {units}, which "
            "this machine has not"
        )
