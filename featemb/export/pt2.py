"""Target ``pt2``: torch.export. Served by torch alone, in Python or from C++."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb.errors import ConfigError, FormatError
from featemb.export.archive import (
    add_manifest,
    manifest_of_archive,
    named_pt2,
    refuse_pickles,
    tidy,
)
from featemb.export.artefact import Artefact
from featemb.export.graph import graph, traced
from featemb.export.job import Job
from featemb.export.quiet import quiet

_SAMPLES = "/data/sample_inputs/"


def program(job: Job) -> Any:
    """Return the exported program of a job."""
    encoder = job.encoder if job.raw else None
    with quiet():
        return traced(graph(job.net, job.schema, encoder), job.inputs, job.names)


def write(job: Job, path: Path) -> None:
    """Write an archive of torch.export.

    Raises:
        ConfigError: an option is given; there are none.
    """
    if job.options:
        raise ConfigError(f"pt2 has no options, got {', '.join(job.options)}")
    with quiet():
        torch.export.save(program(job), path)
    # Leaves out the pickled sample inputs.
    tidy(path, lambda name: name.endswith("/models/model.json"), emptied=_SAMPLES)
    add_manifest(path, job.manifest)


def read(path: Path) -> Artefact:
    """Load an archive.

    Raises:
        FormatError: it is corrupt, cut short, of another version, or not written by featemb.
    """
    manifest = manifest_of_archive(path)
    refuse_pickles(path)
    try:
        with quiet(), named_pt2(path) as named:
            loaded = torch.export.load(named).module()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{os.fspath(path)!r} is not read by torch.export: {error}") from error

    def run(*tensors: Tensor) -> Tensor:
        found: Tensor = loaded(*tensors)
        return found

    return Artefact(path, manifest, run)
