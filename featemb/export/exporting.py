"""Export: prepare the examples, write a file, load it back, compare, and only then put it there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from featemb.errors import ConfigError, ExportError, FeatembError
from featemb.export.artefact import Artefact
from featemb.export.checking import compare, load_artefact, target_module
from featemb.export.encoder import Encoder
from featemb.export.examples import batch_of
from featemb.export.job import frozen_form
from featemb.export.preparing import Prepared, prepared
from featemb.files import replacing

TOLERANCE = 1e-5
_BOTH = ("safetensors", "torchrec")  # loaded, these take ids and raw rows
_PROBES = (1, 2, 3)  # batch sizes tried besides all rows


def export(
    served: nn.Module,
    path: str | os.PathLike[str],
    *,
    to: str = "safetensors",
    encoder: Encoder | None = None,
    raw: bool | None = None,
    examples: Any = None,
    tolerance: float | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Artefact:
    """Write a layer or a whole model to one file for serving, checked against the original.

    The file is loaded back and its outputs are compared with those of the frozen original on the
    examples, at several batch sizes. Where they differ there is no file.

    Args:
        served: a layer or a model of `featemb.models`, trained or frozen; or any module that holds
            layers and is called as ``net(ids)`` or ``net(ids, numeric)``, to a graph's target.
        path: target; an existing file is replaced only by a complete and checked one.
        to: "safetensors", "pt2" (torch.export), "aoti" (AOTInductor), "onnx", or "torchrec".
        encoder: what turns raw columns into ids and numbers; it travels inside the file.
        raw: whether a graph takes tokens and raw numbers rather than ids; None: where there is an
            encoder. A safetensors package with an encoder takes both.
        examples: rows to compare on: ids, a pair (ids, numeric), a batch with both, or raw rows (a
            DataFrame or Arrow table) where there is an encoder; None generates some.
        tolerance: largest allowed ``|found - wanted| / max(1, |wanted|)``; None: 1e-5, and 1e-3 for
            int8 rows in torchrec, whose scales are rounded.
        about: JSON-able facts to keep in the file, such as the run and its data.
        options: of the target.

    Returns:
        The file, loaded.

    Raises:
        ConfigError: the target or an option is unknown, or does not go with the layer.
        ExportError: the target cannot hold the layer, or the outputs differ.
        FormatError: the target's folder does not exist.
    """
    target = target_module(to)
    if raw and encoder is None:
        raise ConfigError("raw=True needs an encoder: what turns raw columns into ids")
    if raw is None or to in _BOTH:
        raw = encoder is not None
    net = frozen_form(served)
    if tolerance is None:
        own = getattr(target, "default_tolerance", None)
        tolerance = (own(net) if own is not None else None) or TOLERANCE
    made = prepared(net, to, encoder, raw, examples, tolerance, dict(about or {}))
    made = replace(made, job=replace(made.job, options=options))
    with (
        replacing(path) as temporary,
        tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".featemb-") as folder,
    ):
        file = Path(folder) / ("model.onnx" if to == "onnx" else "model.pt2")
        _written(made, to, file, tolerance)
        os.replace(file, temporary)
    return load_artefact(path)


def _written(made: Prepared, to: str, file: Path, tolerance: float) -> None:
    """Write a file and compare what it gives."""
    target = target_module(to)
    sizes = (*_PROBES, batch_of(made.inputs))
    try:
        target.write(made.job, file)
        worst = compare(target.read(file), made.inputs, made.wanted, sizes)
    except FeatembError:
        raise
    except Exception as error:  # exporters and runtimes raise whatever they like
        raise ExportError(f"{to}: the export fails: {_reason(error)}") from error
    if worst > tolerance:
        raise ExportError(
            f"{to}: the outputs differ from the frozen original by {worst:.3g}, "
            f"{tolerance:.3g} is allowed; nothing was written. A larger tolerance allows more"
        )


def _reason(error: Exception) -> str:
    """Return what an exporter means: the part behind its advice, without colours, in one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    told = " ".join(text.rpartition("## Exception summary")[2].split())
    return f"{type(error).__name__}: {told[:600]}"
