"""What is traced: a served module from plain input tensors to scores, its encoder inside.

Inputs, in this order (``B`` samples, ``F`` features, ``N`` values, ``M`` numeric columns):

- single-valued features: ``ids`` int64 ``[B, F]``; with an encoder ``tokens``, of the same form;
- otherwise: ``values`` int64 ``[N]``, feature-major as in `Jagged`, and ``lengths`` int64
  ``[F, B]``; the values are ids, or tokens with an encoder;
- ``numeric`` fp32 ``[B, M]``; with an encoder ``numbers``, fp64 ``[B, M]``, raw, NaN is missing.

A graph cannot raise errors, and it never gives a wrong score: a sample with an id out of range or a
number that is not finite gets NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featemb.errors import SchemaError
from featemb.export.encoder import Encoder
from featemb.ids import Jagged
from featemb.pooling import bag_index
from featemb.schema import Schema

Inputs = dict[str, Tensor]


def input_names(schema: Schema, numeric: int, raw: bool) -> list[str]:
    """Return the names of a graph's inputs, in order."""
    ids = [("tokens" if raw else "ids")] if schema.single_valued else ["values", "lengths"]
    return [*ids, *([("numbers" if raw else "numeric")] if numeric else [])]


def inputs_of(ids: Any, numeric: Tensor | None, schema: Schema, raw: bool) -> Inputs:
    """Name the tensors that a layer or model takes, checked by `featemb.ids.parse` already."""
    if isinstance(ids, Jagged):
        found = {"values": ids.values, "lengths": ids.lengths.view(schema.num_features, -1)}
    else:
        found = {"tokens" if raw else "ids": ids}
    if numeric is not None:
        found["numbers" if raw else "numeric"] = numeric
    return {name: tensor.contiguous() for name, tensor in found.items()}


class Guarded(nn.Module):
    """A served layer or model between plain input tensors and its output.

    Args:
        net: a frozen layer, or a model that owns one.
        schema: of its ids.
        encoder: maps tokens to ids first; or None.
    """

    def __init__(self, net: nn.Module, schema: Schema, encoder: Encoder | None) -> None:
        super().__init__()
        self.net = net
        self.schema = schema
        self.encoder = encoder

    def scores(self, ids: Tensor | Jagged, numeric: Tensor | None, wrong: Tensor) -> Tensor:
        """Call the net; NaN for the samples ``[B]`` that are wrong."""
        if numeric is not None:
            missing = torch.zeros_like(numeric, dtype=torch.bool)
            if self.encoder is not None:
                missing = torch.isnan(numeric)
            finite = torch.isfinite(numeric) | missing
            wrong = wrong | ~finite.all(1)
            numeric = torch.where(finite, numeric, 0.0)
            numeric = numeric.float() if self.encoder is None else self.encoder.numbers(numeric)
        out: Tensor = self.net(ids) if numeric is None else self.net(ids, numeric)
        wrong = wrong if out.dim() == 1 else wrong[:, None]
        return torch.where(wrong, torch.nan, out)

    def encoded(self, given: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids in range, and which of the given ones were not."""
        ids = given if self.encoder is None else self.encoder(given, feature)
        most = torch.iinfo(torch.int64).max
        last = torch.tensor([(one.cardinality or most) - 1 for one in self.schema.features])
        last = last.to(ids.device)[feature]
        return ids.clamp(min=0).minimum(last), (ids < 0) | (ids > last)


class GuardedRows(Guarded):
    """`Guarded` where all features are single-valued."""

    def forward(self, ids: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits ``[B]`` or vectors ``[B, W]`` of ids or tokens ``[B, F]``."""
        known, wrong = self.encoded(ids, torch.arange(self.schema.num_features, device=ids.device))
        return self.scores(known, numeric, wrong.any(1))


class GuardedBags(Guarded):
    """`Guarded` where features are multi-valued."""

    def forward(self, values: Tensor, lengths: Tensor, numeric: Tensor | None = None) -> Tensor:
        """Return logits ``[B]`` or vectors ``[B, W]`` of values ``[N]`` and lengths ``[F, B]``."""
        batch = lengths.shape[1]
        flat = lengths.reshape(-1)
        bag = bag_index(flat, values.shape[0])
        known, wrong = self.encoded(values, bag // batch)
        counts = torch.zeros_like(flat).scatter_add(0, bag, wrong.long())
        single = torch.tensor([not one.multi for one in self.schema.features])
        too_long = (lengths > 1) & single.to(lengths.device)[:, None]
        bad = (counts.view(lengths.shape) > 0) | too_long | (lengths < 0)
        bad = bad | (flat.sum() != values.shape[0])
        return self.scores(Jagged(known, flat), numeric, bad.any(0))


def graph(net: nn.Module, schema: Schema, encoder: Encoder | None) -> Guarded:
    """Return the module to trace, in eval mode."""
    form = GuardedRows if schema.single_valued else GuardedBags
    return form(net, schema, encoder).eval()


def ordered(inputs: Mapping[str, Tensor], names: list[str]) -> tuple[Tensor, ...]:
    """Return input tensors in a graph's order.

    Raises:
        SchemaError: one is missing, or is unknown.
    """
    if set(inputs) != set(names):
        raise SchemaError(f"the inputs are {', '.join(names)}, got {', '.join(inputs) or 'none'}")
    return tuple(inputs[name] for name in names)


def traced(module: Guarded, inputs: Mapping[str, Tensor], names: list[str]) -> Any:
    """Return the exported program of a graph, with a dynamic batch (and number of values)."""
    given = ordered(inputs, names)
    dynamic = torch.export.Dim.DYNAMIC
    axes = [{1 if name == "lengths" else 0: dynamic} for name in names]
    with torch.no_grad():
        program = torch.export.export(module, given, dynamic_shapes=tuple(axes))
    for node in program.graph.nodes:  # where each operation comes from would be most of the file
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return program
