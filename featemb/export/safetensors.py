"""Target ``safetensors``: the package of weights, schema, structure and encoder; no pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb import kinds, package
from featemb.errors import ExportError, FormatError
from featemb.export import encoder as encoders
from featemb.export.archive import check_version
from featemb.export.artefact import Artefact
from featemb.export.encoder import Encoder
from featemb.export.job import Job
from featemb.ids import Jagged

_ENCODER = f"{package.BESIDE}encoder."


def write(job: Job, path: Path) -> None:
    """Write a package.

    Raises:
        ExportError: it is a module of another class than featemb's.
    """
    kind = kinds.of(job.net)
    if kind is None:
        raise ExportError(
            f"a package rebuilds layers and models of featemb, not a {type(job.net).__name__}: "
            "use pt2, aoti or onnx, or export its layers"
        )
    # the header of the package says the schema already
    manifest = {k: v for k, v in job.manifest.items() if k != "schema"}
    header = {**kind.describe(job.net), "kind": kind.name, "artefact": manifest}
    package.write(path, header, job.net.state_dict() | encoder_tensors(job.encoder))


def encoder_tensors(encoder: Encoder | None) -> dict[str, Tensor]:
    """Return an encoder's tensors by their names in a package."""
    state = {} if encoder is None else encoder.state_dict()
    return {f"{_ENCODER}{name}": one for name, one in state.items()}


def read(path: Path) -> Artefact:
    """Load a package.

    Raises:
        FormatError: it is corrupt, of a newer version, or does not fit together.
    """
    return artefact_of(path, *package.read(path))


def artefact_of(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Artefact:
    """Return what a package's header and tensors make.

    Raises:
        FormatError: they are of a newer version, or do not fit together; names the path.
    """
    try:
        return _rebuilt(path, header, tensors)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{os.fspath(path)!r} does not fit together: {error!r}") from error


def _rebuilt(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Artefact:
    manifest = manifest_in(header, path)
    module = kinds.find(header["kind"]).rebuild(header, package.own(tensors))
    encoder = None
    if manifest["encoder"] is not None:
        encoder = encoders.from_tree(manifest["encoder"], tensors, _ENCODER)
    return Artefact(path, manifest, _Runner(manifest, module, encoder), module, encoder)


def manifest_in(header: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a package's header.

    Raises:
        FormatError: there is none, or it is of another version.
    """
    if "artefact" not in header:
        raise FormatError(f"{os.fspath(path)!r} is not written by featemb.export")
    tree = header if "schema" in header else header["layers"]["embedding"]
    return check_version({**header["artefact"], "schema": tree["schema"]}, path)


class _Runner:
    """Input tensors to scores, in eager mode, with all checks of a layer."""

    def __init__(self, manifest: Mapping[str, Any], module: Any, encoder: Encoder | None) -> None:
        self.names = manifest["inputs"]
        self.module = module
        self.encoder = encoder

    def __call__(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        numeric = given.get("numeric")
        ids = given.get("ids", given.get("tokens"))
        if self.encoder is not None:
            ids, numeric = encoded(self.encoder, given)
        elif ids is None:
            ids = Jagged(given["values"], given["lengths"].reshape(-1))
        found: Tensor = self.module(ids) if numeric is None else self.module(ids, numeric)
        return found


def encoded(encoder: Encoder, given: Mapping[str, Tensor]) -> tuple[Tensor | Jagged, Tensor | None]:
    """Return ids and normalised numbers of tokens and raw ones."""
    numbers = given.get("numbers")
    numeric = None if numbers is None else encoder.numbers(numbers)
    if "tokens" in given:
        feature = torch.arange(given["tokens"].shape[1])
        return encoder(given["tokens"], feature), numeric
    lengths = given["lengths"]
    feature = torch.arange(lengths.shape[0]).repeat_interleave(lengths.sum(1))
    return Jagged(encoder(given["values"], feature), lengths.reshape(-1)), numeric
