"""KDD Cup 2012, track 2: the original ``training.txt``."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import locate, protocol
from featemb.datasets.source import Source, text

FIELDS: tuple[str, ...] = (
    "display_url",
    "ad_id",
    "advertiser_id",
    "depth",
    "position",
    "query_id",
    "keyword_id",
    "title_id",
    "description_id",
    "user_id",
)
_COLUMNS = ("clicks", "impressions", *FIELDS)


def _label(batch: pa.RecordBatch) -> pa.RecordBatch:
    label = pc.greater(batch.column("clicks"), 0).cast(pa.int8())
    return batch.append_column("label", label)


@protocol(
    "kdd12", "an ad shown in a search session; label: clicked at least once", "KDD Cup 2012 terms"
)
def prepare(
    root: str | os.PathLike[str] | None = None, min_count: int = 10, seed: int = 2018
) -> tuple[Source, Recipe]:
    """``training.txt`` (tab-separated, no header); one sample a line, label ``clicks > 0``.

    The number of impressions is neither a field nor a weight. Ten fields; random 8:1:1 by
    ``seed``; values seen fewer than 10 times in training are unknown.
    """
    path = locate(root, "training.txt", "kdd12/training.txt")
    types = dict.fromkeys(_COLUMNS[:2], pa.int64()) | dict.fromkeys(FIELDS, pa.string())
    recipe = Recipe(
        label="label",
        columns=[Column(name=name) for name in FIELDS],
        min_count=min_count,
        split=SplitRule(seed=seed),
        dropped={"impressions": "known only after the fact"},
    )
    return text(path, _COLUMNS, types, delimiter="\t", transform=_label), recipe
