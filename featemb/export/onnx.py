"""Target ``onnx``: for onnxruntime, and servers without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featemb.errors import ConfigError, ExportError, FormatError
from featemb.export import seal
from featemb.export.archive import check_version
from featemb.export.artefact import Artefact
from featemb.export.job import Job, memory_of
from featemb.export.pt2 import program
from featemb.export.quiet import quiet

_MANIFEST = "featemb"
_MOST_BYTES = 2_000_000_000  # of a protobuf message


def write(job: Job, path: Path) -> None:
    """Write one ONNX file, weights inside.

    Raises:
        ConfigError: an option is given; there are none.
        ExportError: onnx is not installed, or the weights exceed what a file of it holds.
    """
    if job.options:
        raise ConfigError(f"onnx has no options, got {', '.join(job.options)}")
    _require("onnx", "onnxscript", "onnxruntime")
    memory, rest = memory_of(job.net)
    total = memory.serving + rest + job.manifest["bytes"]["vocabulary"]
    if total > _MOST_BYTES:
        raise ExportError(f"onnx: one file holds 2 GB, the weights have {total:,} bytes: use pt2")
    with quiet():
        made = torch.onnx.export(
            program(job),
            dynamo=True,
            verbose=False,
            input_names=job.names,
            output_names=[job.manifest["output"]],
        )
    assert made is not None
    _strip(made.model)
    made.model.metadata_props[_MANIFEST] = json.dumps(job.manifest, separators=(",", ":"))
    made.save(str(path))
    seal.seal_onnx(path)


def _strip(model: Any) -> None:
    """Remove the traces of where each operation comes from: most of a small file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def read(path: Path) -> Artefact:
    """Load a file into onnxruntime; its own threads are as many as torch's.

    Raises:
        ExportError: onnxruntime is not installed.
        FormatError: the file is corrupt, cut short, of another version, or not written by featemb.
    """
    seal.check(path)
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no base but this one
        raise FormatError(f"{os.fspath(path)!r} is not read by onnxruntime: {error}") from error
    text = session.get_modelmeta().custom_metadata_map.get(_MANIFEST)
    if text is None:
        raise FormatError(f"{os.fspath(path)!r} is not written by featemb.export")
    manifest = check_version(json.loads(text), path)
    names = manifest["inputs"]

    def run(*tensors: Tensor) -> Tensor:
        given = {name: one.numpy() for name, one in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return Artefact(path, manifest, run)


def _require(*libraries: str) -> None:
    for name in libraries:
        try:
            __import__(name)
        except ImportError as error:
            raise ExportError(
                f"the target onnx needs {name}: install featemb with its extra 'export'"
            ) from error
