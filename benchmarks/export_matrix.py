"""Try every method, and every model, on every export target; keep what happened in one record.

``python -m featemb.benchmarks.export_matrix docs/results/export/matrix.json`` fills in what the
record lacks (``--again`` tries all anew), so that it can be stopped at any time. AOTInductor takes
most of the time: a compiler run a cell. ``docs/export.md`` shows the record; a test compares them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import featemb
from featemb import models, staging
from featemb.build import embedding
from featemb.check.case import BAGS, SINGLE
from featemb.config import names
from featemb.errors import FeatembError, FormatError
from featemb.export import TARGETS, check, export
from featemb.files import replacing
from featemb.layer import FeatureEmbedding
from featemb.schema import Schema

FORMS = ("rows", "bags")
_DIM = 8
# Where the schema is so small that the method's own settings would keep a plain table.
_SETTINGS = {"dhe": "dhe(width=8, hashes=32, layers=2)"}


def cells() -> Iterator[tuple[str, str, str]]:
    """Every (group, name, form): methods on single and multi-valued features, models, codecs."""
    for name in names("method"):
        for form in FORMS:
            yield "method", name, form
    for name in names("codec"):
        yield "codec", name, "rows"
    for name in models.names():
        yield "model", name, "rows"


def subject(group: str, name: str, form: str) -> nn.Module:
    """Return the layer or model of a cell, through all of its stages, frozen."""
    schema = SINGLE if form == "rows" else BAGS
    if group == "method":
        return _finished(_SETTINGS.get(name, name), schema).freeze()
    if group == "codec":
        return _finished(f"unified(lookups=2, rows=2000)+{name}", schema).freeze()
    numbered = Schema(schema.features, ["age", "price"])
    layer = embedding(numbered, "unified(lookups=2, rows=60)", dim=_DIM)
    small: dict[str, Any] = {} if "hidden" not in models.config_fields(name) else {"hidden": (8,)}
    return models.build(name, embedding=layer, **small).freeze()


def _finished(spec: str, schema: Schema) -> FeatureEmbedding:
    layer = embedding(schema, spec, dim=_DIM)
    start = copy.deepcopy(layer.state_dict())
    for stage in layer.stages():
        staging.begin(layer, stage, start)
        if stage.kind == "search":
            staging.search(layer, stage, lambda: 0.0)
    return layer.eval()


def attempt(group: str, name: str, form: str, target: str) -> dict[str, Any]:
    """Export one cell, check the file, and say how it went."""
    began = time.perf_counter()
    try:
        served = subject(group, name, form)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            made = export(served, path, to=target)
            worst = check(path).worst
            size = path.stat().st_size - sum(made.manifest["bytes"]["parts"].values())
            size -= made.manifest["bytes"]["net"]
    except FeatembError as error:
        return {"ok": False, "reason": str(error).split("\n")[0][:300]}
    seconds = round(time.perf_counter() - began, 1)
    return {"ok": True, "worst": worst, "overhead": size, "seconds": seconds}


def read(path: Path) -> dict[str, Any]:
    """Return a record, or an empty one.

    Raises:
        FormatError: the file holds no record.
    """
    if not path.is_file():
        return {"versions": {}, "cells": {}}
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise FormatError(f"{os.fspath(path)!r} is no record of the matrix: {error}") from error
    return found


def fill(path: Path, targets: list[str], again: bool = False, only: str | None = None) -> None:
    """Fill in a record, a cell at a time.

    Args:
        path: of the record.
        targets: to try.
        again: whether to try cells that the record has.
        only: part of the cells' names, such as "method/tt"; None takes all.
    """
    record = read(path)
    record["versions"] = {"featemb": featemb.__version__, "torch": torch.__version__}
    for target in targets:
        for group, name, form in cells():
            key = f"{group}/{name}/{form}/{target}"
            if (only and only not in key) or (key in record["cells"] and not again):
                continue
            record["cells"][key] = found = attempt(group, name, form, target)
            print(key, "ok" if found["ok"] else found["reason"], flush=True)
            with replacing(path) as temporary:
                text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
                temporary.write_text(text + "\n", "utf-8")


def main() -> None:
    """Fill in the record that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fill(given.record, given.target or list(TARGETS), given.again, given.only)


if __name__ == "__main__":
    main()
