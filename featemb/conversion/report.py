"""What a conversion did to each table, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.memory import tensor_bytes

_ATTRIBUTE = "_featemb_conversion"


@dataclass(frozen=True)
class TableReport:
    """One table before and after.

    Attributes:
        name: path of its module in the model.
        others: further paths that read the same table.
        kind: class of the module before.
        rows: R.
        width: numbers a row, D.
        dtype: of its numbers before.
        codec: text of the codec; None where the table stays as it is.
        reason: why it stays; "" where it does not.
        before: bytes.
        after: bytes.
        error: root of the mean squared error over that of the numbers themselves, of the rows of
            the table (of 65,536 of them in larger ones); None where it was not measured.
    """

    name: str
    others: tuple[str, ...]
    kind: str
    rows: int
    width: int
    dtype: str
    codec: str | None
    reason: str
    before: int
    after: int
    error: float | None = None


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        tables: every table of the model.
        rest: bytes of all other parameters and buffers.
    """

    tables: tuple[TableReport, ...]
    rest: int

    @property
    def before(self) -> int:
        """Bytes of all tables before."""
        return sum(one.before for one in self.tables)

    @property
    def after(self) -> int:
        """Bytes of all tables after."""
        return sum(one.after for one in self.tables)

    @property
    def ratio(self) -> float:
        """Compression ratio of the tables together."""
        return self.before / self.after

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with the totals."""
        return {
            "tables": [asdict(one) | {"others": list(one.others)} for one in self.tables],
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio,
            "rest": self.rest,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conversion:
        """Read what `to_dict` gives."""
        tables = [TableReport(**one | {"others": tuple(one["others"])}) for one in values["tables"]]
        return cls(tuple(tables), values["rest"])

    def __str__(self) -> str:
        lines = [
            f"{one.name or '(the model)'}: {one.before:,} -> {one.after:,} bytes "
            f"({one.codec or one.reason})"
            for one in self.tables
        ]
        total = f"tables: {self.before:,} -> {self.after:,} bytes ({self.ratio:.2f}x)"
        return "\n".join([*lines, f"{total}; the rest: {self.rest:,} bytes"])


def conversion(model: nn.Module) -> Conversion:
    """Return what `featemb.convert` did to make a model.

    Raises:
        ConfigError: it did not make this model.
    """
    found = getattr(model, _ATTRIBUTE, None)
    if not isinstance(found, Conversion):
        raise ConfigError(f"this {type(model).__name__} is not what featemb.convert returned")
    return found


def attach(model: nn.Module, found: Conversion) -> nn.Module:
    """Keep a report with its model."""
    setattr(model, _ATTRIBUTE, found)
    return model


def rest_bytes(model: nn.Module, tables: Iterable[nn.Module]) -> int:
    """Return the bytes of the parameters and buffers outside of some modules; shared ones once."""
    inside = {id(one) for module in tables for one in tensors(module)}
    every = {id(one): one for one in tensors(model)}
    return sum(tensor_bytes(one) for place, one in every.items() if place not in inside)


def tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module, those that are not saved too."""
    return [*module.parameters(), *module.buffers()]


@torch.no_grad()
def relative_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Return the root of the squared errors of pairs (true, decoded) over that of the true ones."""
    errors = own = 0.0
    for true, decoded in pairs:
        errors += float((decoded.double() - true.double()).square().sum())
        own += float(true.double().square().sum())
    if not own:
        return 0.0 if not errors else None
    return float((errors / own) ** 0.5)
