"""`place`: which tables of a layer fit which device: GPU memory first, host memory for the rest.

Nothing is allocated: layers of any size are built on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from featemb.budget import parse_bytes
from featemb.errors import ConfigError, nearest
from featemb.layer import FeatureEmbedding
from featemb.tables import Table, Use, shares, tables

if TYPE_CHECKING:
    import pandas as pd

Placer = Literal["auto", "torchrec", "featemb"]
HOST = "host"


@dataclass(frozen=True, kw_only=True)
class Devices:
    """One machine's memory.

    Attributes:
        gpus: number of GPUs, all alike.
        gpu_memory: bytes of each, as an integer or a text such as ``"80GB"``.
        host_memory: bytes of the host, likewise.
        reserve: share of each that is left free: activations, gradients, the network, the runtime.

    Raises:
        ConfigError: a number or a size is out of range.
    """

    gpus: int = 1
    gpu_memory: int | str = 0
    host_memory: int | str = 0
    reserve: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.gpus, int) or self.gpus < 0:
            raise ConfigError(f"gpus must be an integer >= 0, got {self.gpus!r}")
        if not 0 <= self.reserve < 1:
            raise ConfigError(f"reserve must be at least 0 and less than 1, got {self.reserve!r}")
        for name in ("gpu_memory", "host_memory"):
            value = getattr(self, name)
            object.__setattr__(self, name, parse_bytes(value) if value else 0)
        if not any(self.free().values()):
            raise ConfigError("there is no memory to place anything in: give a size")

    def names(self) -> list[str]:
        """Return the GPUs' names."""
        return [f"gpu:{number}" for number in range(self.gpus)]

    def free(self) -> dict[str, int]:
        """Return the bytes of each device that tables may take."""
        sizes = {name: int(self.gpu_memory) for name in self.names()}
        sizes[HOST] = int(self.host_memory)
        return {name: int(size * (1 - self.reserve)) for name, size in sizes.items()}


@dataclass(frozen=True)
class Shard:
    """Rows of a table on a device.

    Attributes:
        table: name.
        device: "gpu:0" or "host".
        first: number of the first row.
        rows: how many.
        size: bytes.
        how: "whole", "rows" (one of several shards) or "replicated".
    """

    table: str
    device: str
    first: int
    rows: int
    size: int
    how: str


@dataclass(frozen=True)
class Placement:
    """Where tables go.

    Attributes:
        placer: who decided: "torchrec" or "featemb".
        shards: by table.
        left: bytes of the tables that have no place; 0 where the placement is complete.
        lacking: bytes by which all devices together are too small for them; 0 where only the
            division among devices fails.
        note: what the placer says of it, or "".
    """

    placer: str
    shards: tuple[Shard, ...]
    left: int
    lacking: int
    note: str = ""

    @property
    def fits(self) -> bool:
        """Whether every table has its place."""
        return self.left == 0

    @property
    def used(self) -> dict[str, int]:
        """Bytes by device."""
        found: dict[str, int] = {}
        for shard in self.shards:
            found[shard.device] = found.get(shard.device, 0) + shard.size
        return found

    @property
    def summary(self) -> str:
        """Say in a line where the layer goes."""
        if not self.fits:
            if self.lacking:
                return f"does not fit: {self.lacking / 1e9:,.3g} GB too much"
            return "does not fit: no division among the devices holds every table"
        gpus = sum(device != HOST for device in self.used)
        parts = [f"{gpus} GPU{'s' * (gpus > 1)}"] if gpus else []
        return " + ".join([*parts, *([HOST] if HOST in self.used else [])])

    def to_frame(self) -> pd.DataFrame:
        """Return the shards as a data frame, a row each."""
        import pandas as pd

        return pd.DataFrame([vars(shard) for shard in self.shards])


def place(
    layer: FeatureEmbedding,
    devices: Devices,
    *,
    use: Use = "training",
    optimizer: str = "row_adam",
    placer: Placer = "auto",
) -> Placement:
    """Return where the tables of a layer go.

    Args:
        layer: also on the meta device (``fe.embedding(..., device="meta")``).
        devices: the memory that there is.
        use: "training" (with the optimizer's state) or "serving".
        optimizer: whose state counts.
        placer: "torchrec" is TorchRec's own planner, which prices the tables as it would for
            ``DistributedModelParallel``: whole, over their rows, or copied; "featemb" needs nothing
            installed and decides by rule: small parts on every GPU, then tables by reads a byte,
            each on the GPU with most room, one that no GPU holds over the rows of all, what is left
            on the host. "auto" takes TorchRec's where it is installed, there is a GPU, and it finds
            a place for everything.

    Raises:
        ConfigError: the placer or the use is unknown, or TorchRec's is not to be had.
    """
    found = tables(layer, use, optimizer)
    if placer == "featemb":
        return by_rule(found, devices)
    if placer not in ("auto", "torchrec"):
        allowed = ("auto", "torchrec", "featemb")
        raise ConfigError(f"unknown placer {placer!r}; {nearest(str(placer), allowed)}")
    usable = devices.gpus > 0 and find_spec("torchrec") is not None
    if placer == "torchrec" and not usable:
        raise ConfigError("placer 'torchrec' needs torchrec installed, and a GPU to plan for")
    if usable:
        from featemb.torchrec.placement import by_torchrec

        placed = by_torchrec(found, devices)
        if placed.fits or placer == "torchrec":
            return placed
    return by_rule(found, devices)


def replicate(found: Sequence[Table], devices: Devices, free: dict[str, int]) -> list[Shard]:
    """Put the parts that every device needs on every GPU, or on the host; take their bytes off."""
    where = [name for name in devices.names() if free[name]] or [HOST]
    shards = []
    for table in found:
        for device in where:
            free[device] -= table.size
            shards.append(Shard(table.name, device, 0, table.rows, table.size, "replicated"))
    return shards


def by_rule(found: Sequence[Table], devices: Devices) -> Placement:
    """Place tables by the rule of `place`."""
    free = devices.free()
    shards = replicate([table for table in found if table.replicated], devices, free)
    left = 0
    rest = [table for table in found if not table.replicated]
    for table in sorted(rest, key=lambda table: (-table.heat, table.name)):
        placed = _place(table, devices, free)
        for shard in placed:
            free[shard.device] -= shard.size
        shards += placed
        left += 0 if placed else table.size
    return complete("featemb", shards, left, free)


def complete(
    placer: str, shards: Sequence[Shard], left: int, free: Mapping[str, int], note: str = ""
) -> Placement:
    """Return a placement; tables without a place, and devices that hold too much, are counted."""
    over = sum(-room for room in free.values() if room < 0)
    room = sum(room for room in free.values() if room > 0)
    lacking = over + max(0, left - room)
    return Placement(placer, tuple(shards), left + over, lacking, note)


def _place(table: Table, devices: Devices, free: Mapping[str, int]) -> list[Shard]:
    """Return a table's shards; nothing where it does not fit."""
    gpus = sorted(devices.names(), key=lambda name: -free[name])
    if gpus and table.size <= free[gpus[0]]:
        return [Shard(table.name, gpus[0], 0, table.rows, table.size, "whole")]
    for among in (devices.names(), [HOST], [*devices.names(), HOST]):
        shards = _divide(table, {name: free[name] for name in among if free[name] > 0})
        if shards:
            return shards
    return []


def _divide(table: Table, rooms: Mapping[str, int]) -> list[Shard]:
    """Divide a table's rows among devices in proportion to their room; nothing if it is too big."""
    if not rooms:
        return []
    row = -(-table.size // table.rows)
    most = [room // row for room in rooms.values()]
    if sum(most) < table.rows:
        return []
    counts = shares(table.rows, most)
    sizes = shares(table.size, counts)
    shards, first = [], 0
    how = "whole" if len(rooms) == 1 else "rows"
    for device, count, size in zip(rooms, counts, sizes, strict=True):
        if count:
            shards.append(Shard(table.name, device, first, count, size, how))
        first += count
    return shards
