"""`plan`: what every method would take for a schema and a size, without making a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featemb.build import embedding
from featemb.config import names
from featemb.errors import BudgetError
from featemb.optim import build
from featemb.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = (
    "method",
    "spec",
    "fits",
    "serving_bytes",
    "training_bytes",
    "ratio",
    "floor_bytes",
)


def plan(
    schema: Schema,
    *,
    dim: int = 16,
    ratio: float | None = None,
    budget: int | str | None = None,
    specs: list[str] | None = None,
) -> pd.DataFrame:
    """Return one row a method: its solved configuration and its bytes, or its floor.

    The layers are built on the meta device by the same code that trains, so predicted bytes are
    measured bytes, and tables of any size plan at once.

    Args:
        schema: the features.
        dim: output width of a feature.
        ratio: compression ratio wanted, or None.
        budget: serving bytes wanted, such as ``"2MB"``, or None.
        specs: specs to plan; None takes every registered method.

    Returns:
        A data frame with the columns method, spec, fits, serving_bytes, training_bytes (with the
        state of RowAdam, or of the optimizer that a method names), ratio (achieved), floor_bytes
        (smallest size; only where it does not fit).
    """
    import pandas as pd

    rows = [_row(spec, schema, dim, ratio, budget) for spec in specs or names("method")]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _row(
    spec: str, schema: Schema, dim: int, ratio: float | None, budget: int | str | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": spec, "spec": None, "fits": False}
    try:
        layer = embedding(schema, spec, dim=dim, ratio=ratio, budget=budget, device="meta")
    except BudgetError as error:
        return row | {"floor_bytes": error.floor}
    optimizers = [one for split in ("train", "held_out") for one in build(layer, 1.0, split=split)]
    for one in optimizers:
        one.allocate()  # type: ignore[attr-defined]
    memory = layer.memory(optimizers)
    return row | {
        "spec": str(layer.spec),
        "fits": True,
        "serving_bytes": memory.serving,
        "training_bytes": memory.training,
        "ratio": schema.full_bytes(dim) / memory.serving if schema.bounded else None,
        "floor_bytes": None,
    }
