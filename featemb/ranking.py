"""`Ranking`: the order of all ids by how often they occur, cut into groups of equal size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featemb.frequency import cumulative_counts, expected_counts, first_place, hot_sizes
from featemb.parts.address import OffsetAddress
from featemb.parts.base import Part
from featemb.parts.packed import PackedInts
from featemb.parts.ranked import PermutedAddress, RankedAddress
from featemb.schema import Schema


@dataclass(frozen=True)
class Ranking:
    """The ids of all features by falling frequency, in groups of ``size``.

    Attributes:
        schema: the features, whose counts (or Zipf's law) decide.
        size: ids a group; the last one may have fewer.
        first: place of id 0 in its feature, where the other ids are in order; None where they are
            not.
        bounds: ``[F, G + 1]``, how many ids of each feature come before each group; None where the
            ids of a feature are in no order.
    """

    schema: Schema
    size: int
    first: tuple[int | None, ...]
    bounds: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, schema: Schema, size: int) -> Ranking:
        """Rank the ids of a schema."""
        first = tuple(first_place(feature) for feature in schema.features)
        return cls(schema, size, first, None if None in first else _bounds(schema, size))

    def address(self, device: torch.device) -> Part:
        """Return an address whose rows are the places in the order.

        Where the ids of each feature are numbered by frequency it takes 4 (G + 1) bytes a feature,
        and none for a single feature that begins with its most frequent id. Otherwise it holds the
        place of every id, in ceil(log2 N) bits.
        """
        if self.first == (0,):
            return OffsetAddress.of(self.schema.cardinalities)
        if self.bounds is None:
            return self._permuted(device)
        return RankedAddress(
            bounds=torch.from_numpy(self.bounds).to(device=device, dtype=torch.int32),
            size=self.size,
            first=tuple(place for place in self.first if place is not None),
        )

    def shares(self) -> Tensor:
        """Return the expected share of the lookups of each group, fp32 ``[G]``."""
        if self.bounds is None:
            counts = -np.sort(-expected_counts(self.schema))
            sums = np.add.reduceat(counts, np.arange(0, len(counts), self.size))
        else:
            sums = np.diff(cumulative_counts(self.schema, self.bounds)).sum(0)
        return torch.from_numpy(sums / max(sums.sum(), 1e-300)).float()

    def _permuted(self, device: torch.device) -> Part:
        total = sum(self.schema.cardinalities)
        packed = PackedInts.empty([total], [max(1, math.ceil(math.log2(total)))], device)
        if device.type != "meta":
            order = np.argsort(-expected_counts(self.schema), kind="stable")
            places = np.empty(total, dtype=np.int64)
            places[order] = np.arange(total)
            packed.write(torch.from_numpy(places).to(device), 0)
        address = OffsetAddress.of(self.schema.cardinalities)
        return PermutedAddress(address=address, places=packed)


def _bounds(schema: Schema, size: int) -> npt.NDArray[np.int64]:
    total = sum(schema.cardinalities)
    cuts = [np.zeros(schema.num_features, dtype=np.int64)]
    for taken in range(size, total, size):
        cut = np.maximum(hot_sizes(schema, taken), cuts[-1])
        surplus = int(cut.sum()) - taken
        for feature in range(len(cut)):  # ties may fall otherwise in a larger cut
            back = min(surplus, int(cut[feature] - cuts[-1][feature]))
            cut[feature] -= back
            surplus -= back
        cuts.append(cut)
    cuts.append(np.array(schema.cardinalities, dtype=np.int64))
    return np.stack(cuts, 1)
