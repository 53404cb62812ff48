"""The original ``frappe.csv`` holds logged uses only: two sampled negatives follow each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as csv

from featemb.datasets.source import require_columns
from featemb.errors import DataError

FIELDS: tuple[str, ...] = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)
NEGATIVES = 2
_TRIES = 100


def with_negatives(path: Path, seed: int) -> Iterator[pa.RecordBatch]:
    """Yield the uses of ``frappe.csv`` (tab-separated, 96,203 rows), each before its negatives.

    Args:
        path: the file; it is small and read whole.
        seed: of the apps drawn.

    Raises:
        DataError: a column is missing, or a user used nearly every app in a context.
    """
    table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t"))
    table = table.combine_chunks()
    require_columns(table, FIELDS, path.name)
    rows = table.select(FIELDS).to_batches()
    if not rows:
        return
    uses = rows[0]
    items = _negatives(uses, np.random.default_rng(seed))
    place = FIELDS.index("item")
    repeated = uses.take(pa.array(np.repeat(np.arange(len(uses)), 1 + NEGATIVES)))
    kind = uses.schema.field("item").type
    repeated = repeated.set_column(place, "item", pa.array(items.ravel()).cast(kind))
    label = np.tile(np.array([1] + [0] * NEGATIVES, np.int8), len(uses))
    yield repeated.append_column("label", pa.array(label))


def _negatives(uses: pa.RecordBatch, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the items int64 ``[rows, 1 + NEGATIVES]``: the used one, then those not used."""
    context = [uses.column(name).to_pylist() for name in FIELDS if name != "item"]
    item = uses.column("item").to_numpy().astype(np.int64)
    used: defaultdict[tuple[object, ...], set[int]] = defaultdict(set)
    keys = list(zip(*context, strict=True))
    for key, one in zip(keys, item.tolist(), strict=True):
        used[key].add(one)
    apps = np.unique(item)
    drawn = np.empty((len(item), 1 + NEGATIVES), np.int64)
    drawn[:, 0] = item
    for row, key in enumerate(keys):
        for place in range(1, 1 + NEGATIVES):
            drawn[row, place] = _draw(apps, used[key], random)
    return drawn


def _draw(apps: npt.NDArray[np.int64], used: set[int], random: np.random.Generator) -> int:
    for _ in range(_TRIES):
        app = int(apps[random.integers(len(apps))])
        if app not in used:
            return app
    raise DataError(
        f"frappe.csv: no unused app found for a context with {len(used)} of {len(apps)} apps used"
    )
