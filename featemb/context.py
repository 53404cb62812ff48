"""`BuildContext`: what a method's ``build`` gets beside its configuration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featemb.codecs.base import Codec
from featemb.codecs.floats import Fp32
from featemb.errors import ConfigError
from featemb.hashing import mix64_int
from featemb.parts.stored import StoredRows
from featemb.rows import RowTable
from featemb.schema import Feature, Schema
from featemb.starting import Start, are_rows_later

if TYPE_CHECKING:
    from featemb.layer import MethodConfig

_MOST_NUMBERS = 2**59


@dataclass(frozen=True)
class BuildContext:
    """What a method's ``build`` gets beside its configuration.

    Attributes:
        schema: the features.
        dim: output width asked for.
        seed: the one source of randomness.
        device: where the tables are made; "meta" for plans.
        codec: format of the frozen rows, for methods that fit their size to bytes.
        inner: the methods that store this one's rows, from outside to inside (a composition).
        init: bound of the initial values where a method stores another's rows; it replaces the
            method's own.
        tables: counts the tables made, so that each draws its own initial values.
    """

    schema: Schema
    dim: int
    seed: int
    device: torch.device
    codec: Codec = field(default_factory=Fp32)
    inner: tuple[MethodConfig, ...] = ()
    init: float | None = None
    tables: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    def seed_tensor(self) -> Tensor:
        """The seed as an int64 scalar, for address parts."""
        return torch.tensor(self.seed, device=self.device)

    def table(self, num_rows: int, width: int, init: float, center: float = 0.0) -> RowTable:
        """Make a `RowTable` with uniform initial values in ``[center - init, center + init]``.

        Values are drawn on the CPU, so that every device starts from the same ones.
        """
        if num_rows * width >= _MOST_NUMBERS:
            raise ConfigError(f"a table of {num_rows} rows of {width} numbers is beyond 2^61 bytes")
        init = init if self.init is None else self.init
        if self.device.type == "meta":
            with self.device:
                return RowTable(num_rows, width, init, generator=None)
        generator = self.generator()
        if not are_rows_later():
            return RowTable(num_rows, width, init, generator, center).to(self.device)
        with torch.device("meta"):
            table = RowTable(num_rows, width, init, generator=None)
        table.start = Start(generator.initial_seed(), init, center)
        return table

    def rows(
        self, num_rows: int, width: int, init: float, center: float = 0.0, first: int = 0
    ) -> nn.Module:
        """Make the rows that ids read: rows ``[...]`` -> vectors ``[..., width]``.

        That is a `RowTable`, or in a composition a layer of the next method: it embeds row numbers
        as ids of one feature.

        Args:
            num_rows: number of rows.
            width: numbers a row.
            init: half the range of the initial values.
            center: mean of the initial values, of rows from ``first`` on; others start around 0.
            first: see ``center``.
        """
        if self.inner:
            return StoredRows(self._stored(num_rows, width, init), width, center, first)
        table = self.table(num_rows, width, init, 0.0 if first else center)
        if first and center and table.start is not None:
            table.start = replace(table.start, shift=center, first=first)
        elif first and center:
            with torch.no_grad():
                table.weight[first:] += center
        return table

    def _stored(self, num_rows: int, width: int, init: float) -> nn.Module:
        method, *inner = self.inner
        context = replace(
            self,
            schema=Schema([Feature("rows", num_rows)]),
            dim=width,
            seed=mix64_int(self.seed + next(self.tables) + 1) >> 1,
            inner=tuple(inner),
            init=init,
            tables=itertools.count(),
        )
        return method.build(context)

    def only(self, wanted: Sequence[bool]) -> BuildContext:
        """Return the context of some of the features."""
        kept = [f for f, keep in zip(self.schema.features, wanted, strict=True) if keep]
        return replace(self, schema=Schema(kept))

    def generator(self) -> torch.Generator:
        """Return a generator of its own for the next table (or other tensor) of the layer."""
        number = next(self.tables)
        seed = self.seed if number == 0 else mix64_int(self.seed + number) >> 1
        return torch.Generator().manual_seed(seed)
