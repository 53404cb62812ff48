"""`Artefact`: an exported file, loaded; called with ids, or with raw rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from featemb.errors import SchemaError
from featemb.export import tokens
from featemb.export.encoder import Encoder
from featemb.export.graph import Inputs, inputs_of, ordered
from featemb.ids import Jagged, parse
from featemb.memory import Memory
from featemb.schema import Schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Artefact:
    """A loaded file of `featemb.export`.

    Attributes:
        path: the file.
        manifest: what it says of itself.
        runner: input tensors in the order of `inputs` to logits ``[B]`` or vectors ``[B, W]``.
        module: the layer or model itself, where the target keeps one (safetensors, torchrec).
        encoder: turns tokens into ids, where the target keeps one outside of its graph.
    """

    path: Path
    manifest: Mapping[str, Any]
    runner: Callable[..., Tensor]
    module: nn.Module | None = None
    encoder: Encoder | None = None

    @property
    def target(self) -> str:
        """What it was exported to."""
        return str(self.manifest["target"])

    @property
    def schema(self) -> Schema:
        """The features."""
        return Schema.from_json(json.dumps(self.manifest["schema"]))

    @property
    def inputs(self) -> list[str]:
        """Names of the input tensors, in order (see `featemb.export.graph`)."""
        return list(self.manifest["inputs"])

    def memory(self) -> Memory:
        """Serving bytes of the embedding layers, by part."""
        return Memory(self.manifest["bytes"]["parts"])

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the output for input tensors by name, without checks.

        Raises:
            SchemaError: an input is missing or unknown.
        """
        with torch.no_grad():
            return self.runner(*ordered(inputs, self.inputs))

    def __call__(self, ids: Any, numeric: Tensor | None = None) -> Tensor:
        """Return logits ``[B]`` or vectors ``[B, W]`` of ids in any form that a layer takes.

        Args:
            ids: see `featemb.FeatureEmbedding`.
            numeric: normalised fp32 ``[B, M]``, where the model has numeric columns.

        Raises:
            SchemaError: the ids or numbers do not fit, or the file takes raw rows only.
            IdError: an id is out of range.
        """
        if self.module is not None:
            with torch.no_grad():
                found: Tensor = self.module(ids) if numeric is None else self.module(ids, numeric)
            return found
        if self.manifest["raw"]:
            raise SchemaError(
                f"{self.path.name} takes raw rows: call .raw(rows), or export with raw=False"
            )
        schema = self.schema
        checked = parse(ids, schema)
        given = inputs_of(checked, self._numeric(checked, numeric, schema), schema, raw=False)
        return self.run(given)

    def _numeric(
        self, ids: Tensor | Jagged, numeric: Tensor | None, schema: Schema
    ) -> Tensor | None:
        columns = self.manifest["numeric"]
        if not columns and numeric is None:
            return None
        batch = ids.shape[0] if isinstance(ids, Tensor) else len(ids.lengths) // schema.num_features
        fits = numeric is not None and numeric.shape == (batch, columns) and columns
        if numeric is None or not fits or not bool(torch.isfinite(numeric).all()):
            shape = None if numeric is None else list(numeric.shape)
            raise SchemaError(
                f"numeric must be finite numbers [{batch}, {columns}], got {shape}: "
                f"{', '.join(schema.numeric) or 'there are no numeric columns'}"
            )
        return numeric.float()

    def tokens(self, rows: pa.Table | pd.DataFrame | Mapping[str, Any]) -> Inputs:
        """Return the input tensors of raw rows: all that a server computes before the file.

        Args:
            rows: a DataFrame, an Arrow table, or a dict of columns; other columns are left alone.

        Raises:
            DataError: a column is missing, a number is infinite, or there are no rows.
            SchemaError: a column is of another kind than in training, or the file takes ids.
        """
        encoder = self.manifest["encoder"]
        if encoder is None:
            raise SchemaError(f"{self.path.name} holds no encoder: it takes ids")
        return row_tokens(rows, encoder, self.schema, self.manifest["numeric"])

    def raw(self, rows: pa.Table | pd.DataFrame | Mapping[str, Any]) -> Tensor:
        """Return logits ``[B]`` or vectors ``[B, W]`` of raw rows; see `tokens`.

        Missing and unknown values are handled as in training.

        Raises:
            DataError: a column is missing, a number is infinite, or there are no rows.
            SchemaError: a column is of another kind than in training, or the file takes ids.
        """
        given = self.tokens(rows)
        if not self.manifest["raw"]:
            raise SchemaError(f"{self.path.name} takes ids: export with an encoder for raw rows")
        return self.run(given)


def row_tokens(rows: Any, encoder: Mapping[str, Any], schema: Schema, numeric: int) -> Inputs:
    """Return the input tensors of raw rows, by an encoder's settings; see `Artefact.tokens`."""
    table = tokens.table_of(rows)
    stacked = None
    if numeric:
        columns = [tokens.numbers(tokens.column(table, n), n) for n in encoder["numeric"]]
        stacked = torch.from_numpy(np.stack(columns, 1))
    return inputs_of(_tokens(table, encoder, schema), stacked, schema, raw=True)


def _tokens(table: pa.Table, encoder: Mapping[str, Any], schema: Schema) -> Tensor | Jagged:
    columns = [
        (tokens.column(table, name), name, cells, separator, multi)
        for name, cells, separator, multi in zip(
            *(encoder[key] for key in ("names", "cells", "separators", "multi")), strict=True
        )
    ]
    if schema.single_valued:
        found = [tokens.value_tokens(array, cells, name) for array, name, cells, _, _ in columns]
        return torch.from_numpy(np.stack(found, 1).astype(np.int64))
    values, lengths = [], []
    for array, name, cells, separator, multi in columns:
        own = (
            tokens.bag_tokens(array, cells, separator, name)
            if multi
            else (tokens.value_tokens(array, cells, name), np.ones(len(array), np.int64))
        )
        values.append(own[0])
        lengths.append(own[1])
    flat = torch.from_numpy(np.concatenate(values).astype(np.int64))
    return Jagged(flat, torch.from_numpy(np.concatenate(lengths).astype(np.int64)))
