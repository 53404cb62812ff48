"""Export a run: its served model, what encodes raw rows for it, and real rows to compare on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featemb import package
from featemb.benchmarks import records
from featemb.datasets import Dataset
from featemb.datasets.dataset import Batch
from featemb.errors import FormatError, RunError
from featemb.export import Artefact, export, load
from featemb.ids import Jagged
from featemb.models import CTRModel

MODEL = "model.safetensors"
ROWS = "model_rows.safetensors"
_KEPT = 1024


def save(served: CTRModel, dataset: Dataset, record: Mapping[str, Any], folder: Path) -> None:
    """Write a run's served model, and the first rows of its test split, into a folder.

    Args:
        served: the frozen model.
        dataset: the run's data; where it has an encoding, that travels inside the file.
        record: of the run.
        folder: where ``model.safetensors`` and ``model_rows.safetensors`` go.
    """
    rows = next(dataset.splits["test"].batches(_KEPT))
    encoding = dataset.encoding
    encoder = None if encoding is None else encoding.encoder(dataset.schema)
    about = {
        "run": record["run_id"],
        "method": record["solved"],
        "data": record["data"]["name"],
        "fingerprint": record["data"]["fingerprint"],
        "rows": "test",
    }
    export(served, folder / MODEL, encoder=encoder, examples=rows, about=about)
    package.write(folder / ROWS, {"kind": "rows"}, _tensors(rows))


def _tensors(rows: Batch) -> dict[str, torch.Tensor]:
    if isinstance(rows.ids, Jagged):
        found = {"values": rows.ids.values.int(), "lengths": rows.ids.lengths.int()}
    else:
        found = {"ids": rows.ids.int()}
    return found if rows.numeric is None else found | {"numeric": rows.numeric}


def read_rows(folder: Path) -> tuple[Any, torch.Tensor | None] | None:
    """Return ids and numbers of the rows that a run kept, or None where it kept none.

    Raises:
        FormatError: the file is corrupt.
    """
    if not (folder / ROWS).is_file():
        return None
    _, found = package.read(folder / ROWS, "rows")
    ids: Any = found["ids"].long() if "ids" in found else None
    if ids is None:
        ids = Jagged(found["values"].long(), found["lengths"].long())
    return ids, found.get("numeric")


def model_file(run: str | os.PathLike[str]) -> Path:
    """Return the model's file of a run's folder; a file is itself.

    Raises:
        RunError: there is none; the message says how to get one.
    """
    path = Path(run)
    if path.is_dir():
        record = records.read(path)
        if not (path / MODEL).is_file():
            raise RunError(
                f"the run {record['run_id']} ({record['status']}) kept no model: "
                "train it with --save-model into another folder"
            )
        return path / MODEL
    if not path.is_file():
        raise RunError(f"{os.fspath(run)!r} is neither a run's folder nor a model's file")
    return path


def export_run(
    run: str | os.PathLike[str],
    path: str | os.PathLike[str],
    to: str,
    raw: bool | None = None,
    **settings: Any,
) -> Artefact:
    """Export a run's served model, compared on real rows of its test split.

    Args:
        run: folder of the run, or a model's or layer's safetensors file.
        path: target.
        to: see `featemb.export`.
        raw: see `featemb.export`.
        settings: of `featemb.export`.

    Raises:
        RunError: the run kept no model.
        ExportError: the target cannot hold the model, or the outputs differ.
        FormatError: a file is corrupt, or no safetensors package.
    """
    source = model_file(run)
    found = load(source)
    module = found.module if isinstance(found, Artefact) else found
    if module is None:
        raise FormatError(f"{os.fspath(source)!r} is exported already: export its safetensors file")
    if isinstance(found, Artefact):
        settings = {"encoder": found.encoder, "about": found.manifest["about"], **settings}
    return export(module, path, to=to, raw=raw, examples=read_rows(source.parent), **settings)
