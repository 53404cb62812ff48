"""Example rows: what an exported file is checked with, when it is written and later."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featemb.errors import DataError, FormatError
from featemb.export.encoder import Encoder
from featemb.export.graph import Inputs, inputs_of
from featemb.ids import Jagged, parse
from featemb.schema import Schema

GENERATED = 64
_MOST_KEPT = 64


def generated(schema: Schema, numeric: int, batch: int = GENERATED) -> tuple[Any, Tensor | None]:
    """Return random ids and numbers of a schema: the extremes of every feature, empty bags too."""
    generator = torch.Generator().manual_seed(0)
    values, lengths = [], []
    for feature in schema.features:
        size = torch.ones(batch, dtype=torch.int64)
        if feature.multi:
            size = torch.randint(0, 4, (batch,), generator=generator)
            size[:2] = torch.tensor([0, 3])
        count = int(size.sum())
        last = (feature.cardinality or (1 << 62)) - 1
        own = torch.randint(0, last + 1, (count,), generator=generator)
        own[0], own[-1] = 0, last
        values.append(own)
        lengths.append(size)
    numbers = torch.randn(batch, numeric, generator=generator) if numeric else None
    if schema.single_valued:
        return torch.stack(values, 1), numbers
    return Jagged(torch.cat(values), torch.cat(lengths)), numbers


def numbers_in(examples: Any) -> Tensor | None:
    """Return the numeric columns of examples in any accepted form, where they have some."""
    if hasattr(examples, "ids"):
        found: Tensor | None = examples.numeric
        return found
    if isinstance(examples, tuple) and not isinstance(examples, Jagged):
        second: Tensor | None = examples[1]
        return second
    return None


def as_ids(examples: Any, schema: Schema, numeric: int) -> tuple[Tensor | Jagged, Tensor | None]:
    """Return ids and numbers of examples in any accepted form.

    Args:
        examples: ids alone, a pair (ids, numeric), or a batch with ``ids`` and ``numeric``; None
            generates some.
        schema: what the ids must fit.
        numeric: number of numeric columns.

    Raises:
        DataError: there are numeric columns, and the examples lack them.
        SchemaError: the ids do not fit the schema.
        IdError: an id is out of range.
    """
    ids, numbers = examples, None
    if examples is None:
        ids, numbers = generated(schema, numeric)
    elif hasattr(examples, "ids"):
        ids, numbers = examples.ids, numbers_in(examples)
    elif isinstance(examples, tuple) and not isinstance(examples, Jagged):
        ids, numbers = examples[0], numbers_in(examples)
    if numeric and numbers is None:
        raise DataError(f"the examples lack their {numeric} numeric columns: give (ids, numeric)")
    return parse(ids, schema), numbers if numeric else None


def raw_inputs(
    ids: Tensor | Jagged, numeric: Tensor | None, schema: Schema, encoder: Encoder
) -> Inputs:
    """Return tokens and raw numbers that the encoder turns into some ids and numbers."""
    numbers = None if numeric is None else encoder.raw_numbers(numeric)
    if isinstance(ids, Jagged):
        count = schema.num_features
        feature = torch.arange(count).repeat_interleave(ids.lengths.view(count, -1).sum(1))
        tokens: Any = Jagged(encoder.tokens_of(ids.values, feature), ids.lengths)
    else:
        tokens = encoder.tokens_of(ids, torch.arange(schema.num_features))
    return inputs_of(tokens, numbers, schema, raw=True)


def batch_of(inputs: Inputs) -> int:
    """Return the number of samples."""
    first = inputs.get("lengths")
    return first.shape[1] if first is not None else next(iter(inputs.values())).shape[0]


def head(inputs: Inputs, rows: int) -> Inputs:
    """Return the first rows of inputs."""
    if "lengths" not in inputs:
        return {name: one[:rows].contiguous() for name, one in inputs.items()}
    lengths = inputs["lengths"]
    starts = lengths.sum(1).cumsum(0) - lengths.sum(1)
    counts = lengths[:, :rows].sum(1)
    values = [inputs["values"][a : a + n] for a, n in zip(starts, counts, strict=True)]
    rest = {k: v[:rows].contiguous() for k, v in inputs.items() if k not in ("values", "lengths")}
    return {"values": torch.cat(values), "lengths": lengths[:, :rows].contiguous(), **rest}


def kept_rows(weights: int, width: int, features: int) -> int:
    """Return how many example rows a file keeps: few in a small file.

    Args:
        weights: bytes of the weights.
        width: numbers of the output, a row.
        features: numbers of the input, a row.
    """
    room = weights // 200 - 400  # of the hundredth that a file may exceed its weights by
    return max(1, min(_MOST_KEPT, room // (4 * width + 6 * features)))


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return tensors as JSON-able values."""
    return {
        name: {
            "dtype": str(one.numpy().dtype),
            "shape": list(one.shape),
            "data": base64.b64encode(zlib.compress(one.contiguous().numpy().tobytes(), 9)).decode(),
        }
        for name, one in tensors.items()
    }


def unpacked(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Undo `packed`.

    Raises:
        FormatError: the values are no tensors.
    """
    found = {}
    for name, one in tree.items():
        try:
            data = zlib.decompress(base64.b64decode(one["data"], validate=True))
            array = np.frombuffer(data, dtype=one["dtype"]).reshape(one["shape"]).copy()
        except (ValueError, TypeError, KeyError, zlib.error) as error:
            raise FormatError(f"the example rows are not readable: {error}") from error
        found[name] = torch.from_numpy(array)
    return found
