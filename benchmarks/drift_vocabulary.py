"""Vocabularies of the days that have passed, and the rows of a table that move to a new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featemb import staging
from featemb.datasets import Split
from featemb.errors import ConfigError
from featemb.models import CTRModel
from featemb.rows import RowTable
from featemb.schema import Feature, Schema

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """Known ids of each feature, ascending: the one at position i has number i + 1.

    Attributes:
        known: of each feature.
        counts: of each feature int64 ``[known + 1]``, unknown ones first.
    """

    known: tuple[Ids, ...]
    counts: tuple[Ids, ...]

    @classmethod
    def of(cls, days: Sequence[Split], min_count: int) -> Vocabulary:
        """Make the vocabulary of some days; ids seen less often than ``min_count`` are unknown."""
        known, counts = [], []
        ids = np.concatenate([_ids(day) for day in days])
        for column in ids.T:
            values, seen = np.unique(column, return_counts=True)
            kept = (seen >= min_count) & (values != 0)
            known.append(values[kept])
            counts.append(np.concatenate([[len(column) - seen[kept].sum()], seen[kept]]))
        return cls(tuple(known), tuple(counts))

    def schema(self, names: Sequence[str], numeric: Sequence[str]) -> Schema:
        """Return the schema of numbers instead of ids."""
        pairs = zip(names, self.counts, strict=True)
        return Schema([Feature(name, len(one), counts=one) for name, one in pairs], numeric)

    def __call__(self, day: Split) -> Split:
        """Return a day with numbers instead of ids; 0 is missing or unknown."""
        columns = [self._numbers(f, column) for f, column in enumerate(_ids(day).T)]
        ids = torch.from_numpy(np.stack(columns, 1))
        return Split(day.label, ids, (), day.numeric)

    def _numbers(self, feature: int, ids: Ids) -> Ids:
        known = self.known[feature]
        if not len(known):
            return np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, at + 1, 0)

    def moved(self, other: Vocabulary) -> tuple[Tensor, Tensor]:
        """Return the rows of a table of ours, and where they are in one of another vocabulary.

        Tables hold the features one after another, row 0 of each for what is unknown.
        """
        ours, theirs, first, second = [], [], 0, 0
        for mine, there in zip(self.known, other.known, strict=True):
            kept, at, to = np.intersect1d(mine, there, assume_unique=True, return_indices=True)
            ours.append(np.concatenate([[first], first + 1 + at]))
            theirs.append(np.concatenate([[second], second + 1 + to]))
            first, second = first + 1 + len(mine), second + 1 + len(there)
            assert len(kept) == len(at)
        return torch.from_numpy(np.concatenate(ours)), torch.from_numpy(np.concatenate(theirs))

    def __len__(self) -> int:
        """Rows of a table."""
        return sum(len(one) + 1 for one in self.known)


def _ids(day: Split) -> Ids:
    assert day.ids is not None
    found: Ids = day.ids.numpy()
    return found


Optimizers = Sequence[torch.optim.Optimizer]


@torch.no_grad()
def take_over(
    net: CTRModel, optimizers: Optimizers, old: CTRModel, states: Optimizers, rows: tuple[Any, Any]
) -> None:
    """Give a network all that another has learnt over another vocabulary.

    Rows of ids that both know move with their optimizer state; rows of new ids stay as they
    began. Everything else is copied.

    Args:
        net: the new network, whose layers are plain tables.
        optimizers: its optimizers, new ones.
        old: the network before.
        states: its optimizers.
        rows: which rows move, and where to (`Vocabulary.moved`).

    Raises:
        ConfigError: an embedding layer holds more than one plain table.
    """
    tables = _tables(net)
    before = dict(old.named_parameters())
    for name, parameter in net.named_parameters():
        copy(parameter.data, before[name].data, rows if name in tables else None)
        for new, known in zip(optimizers, states, strict=True):
            state = known.state.get(before[name])
            if state is not None:
                new.state[parameter] = {
                    key: _state(value, before[name], parameter, rows if name in tables else None)
                    for key, value in state.items()
                }
    buffers = dict(old.named_buffers())
    for name, buffer in net.named_buffers():
        if buffer.shape == buffers[name].shape:
            buffer.copy_(buffers[name])


def copy(target: Tensor, source: Tensor, rows: tuple[Tensor, Tensor] | None) -> None:
    """Copy a tensor, or some rows of it."""
    if rows is None:
        target.copy_(source)
    else:
        target[rows[1]] = source[rows[0]]


def _state(value: Any, before: Tensor, now: Tensor, rows: tuple[Tensor, Tensor] | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    if rows is None or value.dim() == 0 or value.shape[0] != before.shape[0]:
        return value.clone()
    moved = value.new_zeros((now.shape[0], *value.shape[1:]))
    copy(moved, value, rows)
    return moved


def _tables(net: CTRModel) -> set[str]:
    """Names of the tables' parameters.

    Raises:
        ConfigError: an embedding layer holds more than one plain table.
    """
    wanted = {
        id(module.weight)
        for layer in staging.layers(net)
        for module in layer.modules()
        if isinstance(module, RowTable)
        and len(module.weight) == sum(layer.schema.cardinalities)
        and sum(1 for _ in layer.parameters()) == 1
    }
    if len(wanted) != len(staging.layers(net)):
        raise ConfigError("only layers of one row an id can move to another vocabulary")
    return {name for name, parameter in net.named_parameters() if id(parameter) in wanted}
