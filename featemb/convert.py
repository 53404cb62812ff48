"""`convert`: a trained PyTorch model, its embedding tables stored by codecs, without training.

With a limit of bytes each table gets its own codec, or stays: the choices with the least expected
squared error of what a sample reads, of all whose bytes are within the limit
(`featemb.conversion.choices`). Errors are measured on up to 4,096 rows of each table, bytes are
exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec
from featemb.conversion.coded import CodedTable
from featemb.conversion.copying import copied, put_in_place
from featemb.conversion.finding import Found, find_tables, with_counts, with_schema
from featemb.conversion.held import Layer, Table
from featemb.conversion.planning import Codecs, Wish, patterns, planned
from featemb.conversion.report import (
    Conversion,
    TableReport,
    attach,
    relative_error,
    rest_bytes,
    tensors,
)
from featemb.errors import ConfigError
from featemb.frozen import FrozenEmbedding
from featemb.grammar import write
from featemb.memory import tensor_bytes
from featemb.schema import Schema
from featemb.spec import Spec

_MEASURED_ROWS = 1 << 16


@torch.no_grad()
def convert(
    model: nn.Module,
    codec: Codecs | None = None,
    *,
    tables: str | Iterable[str] | None = None,
    skip: str | Iterable[str] = (),
    min_bytes: int | str | None = None,
    budget: int | str | None = None,
    ratio: float | None = None,
    counts: Mapping[str, Any] | None = None,
    schema: Schema | None = None,
    inplace: bool = False,
    method: str | Spec | None = None,
) -> nn.Module:
    """Return a trained model with its embedding tables in compressed form.

    ::

        small = fe.convert(model, "int8")
        small = fe.convert(model, {"*user*": "pq(parts=4)", "*": "int8"}, min_bytes="1MB")
        print(fe.conversion(fe.convert(model, ratio=10)))

    Tables are `nn.Embedding`, `nn.EmbeddingBag` (TorchRec's collections are made of them), and
    layers of featemb, anywhere in the model. What takes their place is called in the same way;
    padding rows of zeros stay exactly that. Weights that are shared are coded once and stay shared.
    All else is copied, but optimizers. The result is in eval mode.

    Args:
        model: any module; it is left as it is unless ``inplace``.
        codec: format of the rows, "int8" by default; or one by pattern of names: the first that
            fits. With a limit: one or several to choose from, where a bare "pq", "rq", "svd" or
            "binary" stands for several sizes.
        tables: patterns of the names (paths of modules) to convert, such as "*user*".
        skip: patterns of the names to leave as they are.
        min_bytes: smaller tables stay, such as "1MB".
        budget: limit of bytes of all tables together, with those that stay, such as "2MB".
        ratio: the same as a share: bytes of all tables before over the limit.
        counts: name -> how often each row of a table is read, ``[R]``, to weigh its errors by.
        schema: features with counts, for frozen layers of featemb, which keep none.
        inplace: replace the tables in the model itself.
        method: layers of it, to be trained, replace TorchRec's collections; with ratio or budget.

    Raises:
        ConfigError: no table fits, a chosen one cannot be converted, or an argument is wrong.
        BudgetError: the tables cannot get that small; ``floor`` is the smallest number of bytes.
        DataError: a table's numbers do not fit the codec's format.
    """
    wish = Wish(codec, patterns(tables), patterns(skip), min_bytes, budget, ratio)
    if method is not None:
        return stood_in(model, method, inplace, wish)
    found = find_tables(model)
    with_counts(found, counts or {})
    if schema is not None:
        with_schema(found, schema)
    entries = [_entry(*one) for one in planned(found, wish)]
    swaps = {old: new for entry in entries for old, new in entry.swaps.items()}
    made = put_in_place(model, swaps) if inplace else copied(model, swaps)
    inside = [made.get_submodule(one.name) for one in found]
    report = Conversion(tuple(entry.report for entry in entries), rest_bytes(made, inside))
    return attach(made.eval(), report)


def stood_in(model: nn.Module, method: str | Spec, inplace: bool, wish: Wish) -> nn.Module:
    """Return a model with layers of a method in the place of TorchRec's collections.

    Raises:
        ConfigError: it holds none, codecs or tables were chosen, or TorchRec is missing.
    """
    from featemb.torchrec.replace import stand_ins

    size = {"budget": wish.budget, "ratio": wish.ratio}
    if wish != Wish(None, patterns(None), patterns(()), None, wish.budget, wish.ratio):
        raise ConfigError("with a method, convert takes ratio, budget and inplace alone")
    swaps = stand_ins(model, method, **size)
    return put_in_place(model, swaps) if inplace else copied(model, swaps)


@dataclass(frozen=True)
class _Entry:
    """What becomes of a table: its report, and what replaces its modules."""

    report: TableReport
    swaps: dict[nn.Module, nn.Module]


def _entry(one: Found, codec: Codec | None, reason: str) -> _Entry:
    """Encode a table, and make what takes the place of its modules."""
    held = one.held
    swaps: dict[nn.Module, nn.Module] = {}
    after, error = held.before, None
    if codec is not None:
        stored = held.encoded(codec)
        swaps = {
            module: replacer.build(module, stored).train(module.training)
            for module, replacer in zip(one.modules, one.replacers, strict=True)
        }
        after = sum(tensor_bytes(each) for each in tensors(stored))
        error = _measured(one, stored)
    rows, width = held.shape
    report = TableReport(
        name=one.name,
        others=held.others,
        kind=type(one.modules[0]).__name__,
        rows=rows,
        width=width,
        dtype=str(held.dtype).removeprefix("torch."),
        codec=None if codec is None else write(codec),
        reason=reason,
        before=held.before,
        after=after,
        error=error,
    )
    return _Entry(report, swaps)


def _measured(one: Found, stored: nn.Module) -> float | None:
    """Return the relative error of a table's rows, or of a layer's vectors."""
    held = one.held
    if isinstance(held, Table) and isinstance(stored, CodedTable):
        ((table, _),) = held.matrices()
        step = -(-len(table) // _MEASURED_ROWS)
        rows = torch.arange(0, len(table), step, device=table.device)
        return relative_error([(table[rows], stored(rows))])
    if isinstance(held, Layer) and isinstance(stored, FrozenEmbedding) and held.schema.bounded:
        return relative_error(_vectors(held.frozen(), stored))
    return None


def _vectors(first: FrozenEmbedding, second: FrozenEmbedding) -> Iterable[tuple[Tensor, Tensor]]:
    device = next(first.buffers()).device
    for number, size in enumerate(first.schema.cardinalities):
        ids = torch.arange(0, size, -(-size // 1024), device=device)
        feature = torch.full_like(ids, number)
        yield first.lookup(ids, feature), second.lookup(ids, feature)
