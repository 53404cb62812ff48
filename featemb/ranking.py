"""The order of all ids by how often they occur, cut into groups: addresses and counts of it."""

from __future__ import annotations

import math

import numpy as np
import torch

from featemb.frequency import expected_counts, first_place, hot_sizes
from featemb.parts.address import OffsetAddress
from featemb.parts.base import Part
from featemb.parts.packed import PackedInts
from featemb.parts.ranked import PermutedAddress, RankedAddress
from featemb.schema import Schema


def ranked_address(schema: Schema, size: int, device: torch.device) -> Part:
    """Return an address whose rows are in the order of frequency, in groups of ``size`` rows.

    Where the ids of each feature are numbered by frequency it takes 4 (G + 1) bytes a feature, and
    none for a single feature that begins with its most frequent id. Otherwise it holds the place of
    every id, in ceil(log2 N) bits.
    """
    cardinalities = schema.cardinalities
    first = [first_place(feature) for feature in schema.features]
    if first == [0]:
        return OffsetAddress.of(cardinalities)
    places = tuple(place for place in first if place is not None)
    if len(places) < len(first):
        return _permuted(schema, device)
    bounds = _bounds(schema, size)
    return RankedAddress(
        bounds=torch.from_numpy(bounds).to(device=device, dtype=torch.int32),
        size=size,
        first=places,
    )


def _bounds(schema: Schema, size: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return ``[F, G + 1]``: how many ids of each feature come before each group."""
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


def _permuted(schema: Schema, device: torch.device) -> Part:
    total = sum(schema.cardinalities)
    bits = max(1, math.ceil(math.log2(total)))
    packed = PackedInts.empty([total], [bits], device)
    if device.type != "meta":
        order = np.argsort(-expected_counts(schema), kind="stable")
        places = np.empty(total, dtype=np.int64)
        places[order] = np.arange(total)
        packed.write(torch.from_numpy(places).to(device), 0)
    return PermutedAddress(address=OffsetAddress.of(schema.cardinalities), places=packed)


def group_shares(schema: Schema, size: int) -> torch.Tensor:
    """Return the expected share of lookups of each group of ids by falling frequency, ``[G]``."""
    counts = -np.sort(-expected_counts(schema))
    sums = np.add.reduceat(counts, np.arange(0, len(counts), size))
    return torch.from_numpy(sums / max(sums.sum(), 1e-300)).float()
