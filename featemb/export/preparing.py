"""What is done before a target writes: examples, the scores that they must get, the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.export.artefact import row_tokens
from featemb.export.encoder import Encoder
from featemb.export.examples import (
    as_ids,
    batch_of,
    head,
    kept_rows,
    numbers_in,
    packed,
    raw_inputs,
)
from featemb.export.graph import Inputs, inputs_of
from featemb.export.job import Job, manifest_of, memory_of, schema_of
from featemb.export.safetensors import encoded
from featemb.ids import Jagged, parse
from featemb.schema import Schema

_TRACED = 4


@dataclass(frozen=True)
class Prepared:
    """A job, and what it is judged by.

    Attributes:
        job: the export.
        inputs: of all examples, in the file's form.
        wanted: outputs of the frozen original for them.
    """

    job: Job
    inputs: Inputs
    wanted: Tensor


def prepared(
    net: nn.Module,
    to: str,
    encoder: Encoder | None,
    raw: bool,
    examples: Any,
    tolerance: float,
    about: dict[str, Any],
) -> Prepared:
    """Bring the examples to the form of the file, score them, and keep a few for later checks."""
    schema, numeric = schema_of(net, numbers_in(examples))
    if encoder is not None and encoder.names != schema.names:
        raise ConfigError(f"the encoder is of {encoder.names}, the layer of {schema.names}")
    if encoder is not None and numeric and len(encoder.numeric) != numeric:
        raise ConfigError(
            f"the model has {numeric} numeric columns, the encoder {len(encoder.numeric)}: "
            f"{', '.join(encoder.numeric) or 'none'}"
        )
    inputs, ids, numbers = _example_inputs(examples, schema, numeric, encoder, raw)
    with torch.no_grad():
        wanted: Tensor = net(ids) if numbers is None else net(ids, numbers)
    manifest = manifest_of(net, to, encoder, raw, tolerance, about, (schema, numeric))
    memory, rest = memory_of(net)
    width = 1 if wanted.dim() == 1 else wanted.shape[1]
    rows = min(batch_of(inputs), kept_rows(memory.serving + rest, width, schema.num_features))
    kind = "generated" if examples is None else "given"
    manifest["compared"] = {"rows": batch_of(inputs), "kind": kind}
    manifest["examples"] = packed(head(inputs, rows))
    manifest["expected"] = packed({"output": wanted[:rows]})
    job = Job(net, schema, numeric, encoder, raw, _at_least_two(inputs), manifest, {})
    return Prepared(job, inputs, wanted)


def _example_inputs(
    examples: Any, schema: Schema, numeric: int, encoder: Encoder | None, raw: bool
) -> tuple[Inputs, Tensor | Jagged, Tensor | None]:
    """Return the inputs of a file, and the ids and numbers that they stand for."""
    if hasattr(examples, "column_names") or hasattr(examples, "columns"):
        if encoder is None:
            raise ConfigError("raw rows as examples need an encoder")
        inputs = row_tokens(examples, encoder.describe(), schema, numeric)
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
