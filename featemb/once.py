"""Each distinct (feature, id) of a batch looked up once, where a vector costs more than a row.

Batches repeat their ids: a few values of a feature are most of its occurrences. A source whose
parts compute vectors, or unpack them from bits, is asked for the distinct ids alone and its
answers are gathered. A plain table is not: finding the distinct ids costs more than its rows do.

Shape letters: N ids, U distinct ones among them.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb.ids import tracing
from featemb.parts.base import Part, Source
from featemb.schema import Schema

_LARGEST = (1 << 63) - 1


def applies() -> bool:
    """Whether distinct ids may be looked for: a trace cannot know how many there are."""
    return not tracing()


def computes(source: nn.Module) -> bool:
    """Whether a part of a source says that its answers cost more than finding distinct ids."""
    return any(isinstance(part, Part) and part.computes for part in source.modules())


def needed(source: nn.Module) -> bool:
    """Whether a layer should find the distinct ids for its source: it computes, and does not."""
    parts = [part for part in source.modules() if isinstance(part, Part)]
    return any(part.computes for part in parts) and not any(part.finds_distinct for part in parts)


def look_up(source: Source, ids: Tensor, feature: Tensor, schema: Schema) -> Tensor:
    """Return a source's vectors ``[..., D]``, each distinct (feature, id) computed once.

    Args:
        source: what computes.
        ids: int64 ``[...]``, within their cardinalities.
        feature: int64, broadcastable against the ids.
        schema: the features; where one is unbounded, all ids are computed.
    """
    sizes = [one.cardinality for one in schema.features if one.cardinality is not None]
    if len(sizes) < schema.num_features or sum(sizes) > _LARGEST:
        every: Tensor = source(ids, feature)
        return every
    starts = torch.tensor((0, *accumulate(sizes)), device=ids.device)
    keys = starts[feature] + ids
    distinct, place = torch.unique(keys.reshape(-1), return_inverse=True)
    of = torch.bucketize(distinct, starts[1:], right=True)
    vectors: Tensor = source(distinct - starts[of], of)
    return F.embedding(place, vectors).view(*keys.shape, vectors.shape[-1])
