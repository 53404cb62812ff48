"""Export, load and check: the same three steps whatever the target."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError, ExportError, FormatError, nearest
from featemb.export import tokens
from featemb.export.artefact import Artefact, row_tokens
from featemb.export.encoder import Encoder
from featemb.export.examples import as_ids, batch_of, head, kept_rows, packed, raw_inputs, unpacked
from featemb.export.graph import Inputs, inputs_of
from featemb.export.job import Job, difference, frozen_form, manifest_of, memory_of, schema_of
from featemb.export.safetensors import encoded
from featemb.files import replacing
from featemb.ids import Jagged, parse
from featemb.schema import Schema

# Each module has write(job, path) and read(path).
TARGETS = ("safetensors", "pt2", "aoti", "onnx", "torchrec")
TOLERANCE = 1e-5
_PROBES = (1, 2, 3)  # batch sizes tried besides all rows
_TRACED = 4


def target_module(name: str) -> Any:
    """Return a target's module.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; {nearest(str(name), TARGETS)}")
    return importlib.import_module(f"featemb.export.{name}")


def export(
    served: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: str = "safetensors",
    encoder: Encoder | None = None,
    raw: bool | None = None,
    examples: Any = None,
    tolerance: float = TOLERANCE,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Artefact:
    """Write a layer or a whole model to one file for serving, checked against the original.

    The file is loaded back and its outputs are compared with those of the frozen original on the
    examples, at several batch sizes. Where they differ there is no file.

    Args:
        served: a layer, a frozen layer, or a model of `featemb.models`, trained or frozen.
        path: target; an existing file is replaced only by a complete and checked one.
        to: "safetensors", "pt2" (torch.export), "aoti" (AOTInductor), "onnx", or "torchrec".
        encoder: what turns raw columns into ids and numbers; it travels inside the file.
        raw: whether the file takes tokens and raw numbers; None: where there is an encoder.
        examples: rows to compare on: ids, a pair (ids, numeric), a batch with both, or raw rows (a
            DataFrame or Arrow table) where there is an encoder; None generates some.
        tolerance: largest allowed ``|found - wanted| / max(1, |wanted|)``.
        about: JSON-able facts to keep in the file, such as the run and its data.
        options: of the target.

    Returns:
        The file, loaded.

    Raises:
        ConfigError: the target or an option is unknown, or does not go with the layer.
        ExportError: the target cannot hold the layer, or the outputs differ.
        FormatError: the target's folder does not exist.
    """
    module = target_module(to)
    net = frozen_form(served)
    raw = encoder is not None if raw is None else raw
    if raw and encoder is None:
        raise ConfigError("raw=True needs an encoder: what turns raw columns into ids")
    made = _prepared(net, to, encoder, raw, examples, tolerance, dict(about or {}))
    job = replace(made.job, options=options)
    suffix = ".onnx" if to == "onnx" else ".pt2"
    with (
        replacing(path) as temporary,
        tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".featemb-") as folder,
    ):
        file = Path(folder) / f"model{suffix}"
        module.write(job, file)
        found = module.read(file)
        worst = compare(found, made.inputs, made.wanted, (*_PROBES, batch_of(made.inputs)))
        if worst > tolerance:
            raise ExportError(
                f"{to}: the outputs differ from the frozen original by {worst:.3g}, "
                f"{tolerance:.3g} is allowed; nothing was written"
            )
        del found
        os.replace(file, temporary)
    return load_artefact(path)


@dataclass(frozen=True)
class _Prepared:
    job: Job
    inputs: Inputs
    wanted: Tensor


def _prepared(
    net: nn.Module,
    to: str,
    encoder: Encoder | None,
    raw: bool,
    examples: Any,
    tolerance: float,
    about: dict[str, Any],
) -> _Prepared:
    """Bring the examples to the form of the file, score them, and keep a few for later checks."""
    schema, numeric = schema_of(net)
    if encoder is not None and encoder.names != schema.names:
        raise ConfigError(f"the encoder is of {encoder.names}, the layer of {schema.names}")
    inputs, ids, numbers = _example_inputs(examples, schema, numeric, encoder, raw)
    with torch.no_grad():
        wanted: Tensor = net(ids) if numbers is None else net(ids, numbers)
    manifest = manifest_of(net, to, encoder, raw, tolerance, about)
    memory, rest = memory_of(net)
    width = 1 if wanted.dim() == 1 else wanted.shape[1]
    rows = min(batch_of(inputs), kept_rows(memory.serving + rest, width, schema.num_features))
    manifest["examples"] = packed(head(inputs, rows))
    manifest["expected"] = packed({"output": wanted[:rows]})
    job = Job(net, schema, numeric, encoder, raw, _at_least_two(inputs), manifest, {})
    return _Prepared(job, inputs, wanted)


def _example_inputs(
    examples: Any, schema: Schema, numeric: int, encoder: Encoder | None, raw: bool
) -> tuple[Inputs, Tensor | Jagged, Tensor | None]:
    """Return the inputs of a file, and the ids and numbers that they stand for."""
    if hasattr(examples, "column_names") or hasattr(examples, "columns"):
        if encoder is None:
            raise ConfigError("raw rows as examples need an encoder")
        inputs = row_tokens(examples, encoder.describe(), schema)
        ids, numbers = encoded(encoder, inputs)
        parse(ids, schema)
    else:
        ids, numbers = as_ids(examples, schema, numeric)
        if encoder is not None and raw:
            inputs = raw_inputs(ids, numbers, schema, encoder)
            ids, numbers = encoded(encoder, inputs)
            parse(ids, schema)
    if not raw:
        inputs = inputs_of(ids, numbers, schema, raw=False)
    return inputs, ids, numbers


def _at_least_two(inputs: Inputs) -> Inputs:
    """Return a few rows to trace with: sizes of one would be taken as constants."""
    batch = batch_of(inputs)
    if batch >= _TRACED:
        return head(inputs, _TRACED)
    copies = -(-_TRACED // batch)
    if "lengths" not in inputs:
        return {name: torch.cat([one] * copies) for name, one in inputs.items()}
    starts = inputs["lengths"].sum(1).cumsum(0) - inputs["lengths"].sum(1)
    parts = inputs["values"].tensor_split(starts[1:])
    rest = {n: torch.cat([v] * copies) for n, v in inputs.items() if n not in ("values", "lengths")}
    return {
        "values": torch.cat([torch.cat([part] * copies) for part in parts]),
        "lengths": torch.cat([inputs["lengths"]] * copies, 1),
        **rest,
    }


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


__all__ = ["Check", "check", "compare", "export", "load_artefact", "tokens"]
