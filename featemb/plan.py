"""`plan`: what every method would take for a schema and a size, without making a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from featemb.build import check_request, embedding
from featemb.config import find, names
from featemb.errors import BudgetError, ConfigError, SchemaError
from featemb.layer import FeatureEmbedding, MethodConfig
from featemb.memory import Memory
from featemb.optim import build
from featemb.placement import HOST, Devices, Placer, place
from featemb.schema import Schema
from featemb.spec import parse
from featemb.tables import Use

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
    "serving_parts",
    "training_parts",
    "reason",
)
_PLACES = ("placed", "gpu_bytes", "host_bytes")
# Codecs that nearly every table takes without a loss worth telling.
_CODECS = ("int8", "int4")


class _Where(NamedTuple):
    devices: Devices
    use: Use
    placer: Placer


def plan(
    schema: Schema,
    *,
    dim: int = 16,
    ratio: float | None = None,
    budget: int | str | None = None,
    specs: Sequence[str] | None = None,
    compositions: bool = False,
    optimizer: str = "row_adam",
    devices: Devices | None = None,
    use: Use = "training",
    placer: Placer = "auto",
) -> pd.DataFrame:
    """Return one row a method: its solved configuration and its bytes, or its floor.

    The layers are built on the meta device by the same code that trains, so predicted bytes are
    measured bytes, and tables of any size plan at once: a billion ids take no memory.

    Args:
        schema: the features.
        dim: output width of a feature.
        ratio: compression ratio wanted, or None.
        budget: serving bytes wanted, such as ``"2MB"``, or None.
        specs: specs to plan; None takes every registered method.
        compositions: whether the methods that store fp32 rows are planned with ``int8`` and
            ``int4`` rows too.
        optimizer: whose state is part of the training bytes, as in `featemb.optim.build`. A method
            that names its own has that one.
        devices: memory to place each method's tables in, as `featemb.place` does; None places none.
        use: what is placed, "training" or "serving".
        placer: who places, as in `featemb.place`.

    Returns:
        A data frame with the columns method (as given), spec (solved), fits, serving_bytes,
        training_bytes (parameters, buffers and optimizer state), ratio (achieved), floor_bytes
        (smallest size; only where it does not fit), serving_parts and training_parts (bytes by
        part), reason (why it cannot be had; "" where it fits); with devices also placed (where the
        tables go, or what is missing), gpu_bytes (of the fullest GPU) and host_bytes.

    Raises:
        ConfigError: a spec, the width, the size or the optimizer is not allowed.
    """
    import pandas as pd

    check_request(dim, ratio, budget)
    wanted = list(names("method") if specs is None else specs)
    for spec in wanted:
        _ = parse(spec)
    if compositions:
        wanted += [spec for spec in with_codecs(wanted) if spec not in wanted]
    how = None if devices is None else _Where(devices, use, placer)
    rows = [_row(spec, schema, dim, ratio, budget, optimizer, how) for spec in wanted]
    return pd.DataFrame(rows, columns=[*_COLUMNS, *(() if how is None else _PLACES)])


def with_codecs(specs: Sequence[str]) -> list[str]:
    """Return the specs that are registered methods of fp32 rows, with each codec of integers."""
    registered = {name: find(name) for name in names("method")}
    formats = {
        name
        for name, method in registered.items()
        if issubclass(method, MethodConfig) and method.axis == "format"
    }
    plain = [spec for spec in specs if spec in registered and spec not in formats]
    return [f"{spec}+{codec}" for spec in plain for codec in _CODECS]


def _row(
    spec: str,
    schema: Schema,
    dim: int,
    ratio: float | None,
    budget: int | str | None,
    optimizer: str,
    where: _Where | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": spec, "spec": None, "fits": False}
    row |= {"serving_parts": {}, "training_parts": {}}
    try:
        layer = embedding(schema, spec, dim=dim, ratio=ratio, budget=budget, device="meta")
    except BudgetError as error:
        return row | {"floor_bytes": error.floor, "reason": str(error)}
    except (ConfigError, SchemaError) as error:  # this method, for this schema and width
        return row | {"reason": str(error)}
    memory = _memory(layer, optimizer)
    return row | {
        "spec": str(layer.spec),
        "fits": True,
        "serving_bytes": memory.serving,
        "training_bytes": memory.training,
        "ratio": schema.full_bytes(dim) / memory.serving if schema.bounded else None,
        "floor_bytes": None,
        "serving_parts": dict(memory.parts),
        "training_parts": dict(memory.training_parts),
        "reason": "",
        **({} if where is None else _placed(layer, where, optimizer)),
    }


def _placed(layer: FeatureEmbedding, where: _Where, optimizer: str) -> dict[str, Any]:
    found = place(layer, where.devices, use=where.use, optimizer=optimizer, placer=where.placer)
    used = found.used
    host = used.pop(HOST, 0)
    return {"placed": found.summary, "gpu_bytes": max(used.values(), default=0), "host_bytes": host}


def _memory(layer: Any, optimizer: str) -> Memory:
    memory: Memory = layer.memory(
        [one for split in ("train", "held_out") for one in _allocated(layer, optimizer, split)]
    )
    return memory


def _allocated(layer: Any, optimizer: str, split: str) -> list[Any]:
    made = build(layer, 1.0, optimizer, split=split)
    for one in made:
        one.allocate()  # type: ignore[attr-defined]
    return made
