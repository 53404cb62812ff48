"""Device plans: every byte is placed once, nothing is overfull, and what cannot be is said."""

from __future__ import annotations

import itertools
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import featemb as fe
from featemb.cli import main
from featemb.optim import build
from featemb.placement import Shard, by_rule
from featemb.tables import Table, shares, tables

BIG = fe.Schema([fe.Feature("user", 10**9), fe.Feature("item", 10**8), fe.Feature("hour", 24)])
MIDDLE = fe.Schema([fe.Feature("user", 400_000), fe.Feature("item", 90_000), fe.Feature("day", 7)])
PLACERS = ["featemb"]
if find_spec("torchrec"):
    PLACERS.append("torchrec")


def layer(spec: str = "full", schema: fe.Schema = MIDDLE, **size: Any) -> fe.FeatureEmbedding:
    return fe.embedding(schema, spec, dim=16, device="meta", **size)


def specs() -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name in fe.methods():
        for size in ({"ratio": 5}, {"ratio": 2}, {}):
            try:
                layer(name, **size)
            except fe.BudgetError:
                continue
            found.append((name, size))
            break
    return found


@pytest.mark.parametrize(("spec", "size"), specs())
def test_tables_have_all_bytes_of_a_layer(spec: str, size: dict[str, Any]) -> None:
    made = layer(spec, **size)
    optimizers = [one for part in ("train", "held_out") for one in build(made, 1.0, split=part)]
    for one in optimizers:
        one.allocate()  # type: ignore[attr-defined]
    memory = made.memory(optimizers)
    assert sum(table.size for table in tables(made, "training")) == memory.training
    assert sum(table.size for table in tables(made, "serving")) == memory.serving


def test_private_rows_are_divided_by_features() -> None:
    found = {table.name.split(":")[-1]: table for table in tables(layer(), "serving")}
    assert {name: table.rows for name, table in found.items()} == {
        "user": 400_000,
        "item": 90_000,
        "day": 7,
    }
    assert found["item"].size == 90_000 * 64
    (shared,) = (t for t in tables(layer("unified", ratio=5)) if not t.replicated)
    assert (shared.lookups, shared.name) == (3, "source.rows")


def test_networks_are_on_every_gpu() -> None:
    devices = fe.Devices(gpus=3, gpu_memory="1GB", host_memory="1GB")
    placed = fe.place(layer("dhe", ratio=5), devices, placer="featemb")
    assert {shard.how for shard in placed.shards} == {"replicated"}
    assert set(placed.used) == {"gpu:0", "gpu:1", "gpu:2"}


@pytest.mark.parametrize("placer", PLACERS)
@pytest.mark.parametrize(
    ("spec", "gpus", "gpu", "host", "fits"),
    [
        ("full", 4, "80GB", "1TB", True),
        ("full", 16, "80GB", "64GB", True),
        ("full", 1, "16GB", "64GB", False),
        ("hash(rows=55000000)", 1, "16GB", "64GB", True),
        ("hash(rows=55000000)", 1, "80GB", "1GB", True),
        ("tt(rank=32)", 1, "16GB", "1GB", True),
    ],
)
def test_tables_of_a_billion_ids(
    placer: Any, spec: str, gpus: int, gpu: str, host: str, fits: bool
) -> None:
    devices = fe.Devices(gpus=gpus, gpu_memory=gpu, host_memory=host)
    made = fe.embedding(BIG, spec, dim=64, device="meta")
    placed = fe.place(made, devices, placer=placer)
    assert placed.placer == placer
    assert placed.fits == fits
    assert placed.fits == (not placed.summary.startswith("does not fit"))
    free = devices.free()
    assert all(size <= free[device] for device, size in placed.used.items())
    rows = {table.name: table for table in tables(made) if not table.replicated}
    for name, table in rows.items():
        mine = sorted((s for s in placed.shards if s.table == name), key=lambda s: s.first)
        if fits and mine[0].how != "replicated":
            assert covers(mine, table)
    if not fits:
        assert placed.lacking > 0


def covers(shards: list[Shard], table: Table) -> bool:
    """Whether shards hold each row of a table once, and all of its bytes."""
    ends = list(itertools.accumulate(shard.rows for shard in shards))
    begins = [shard.first for shard in shards]
    return (
        begins == [0, *ends[:-1]]
        and ends[-1] == table.rows
        and sum(shard.size for shard in shards) == table.size
    )


@pytest.mark.parametrize("sizes", list(itertools.product([10, 40, 90], repeat=3)))
def test_small_cases_are_placed_where_anything_could(sizes: tuple[int, ...]) -> None:
    found = [Table(f"t{i}", 1 if i == 3 else size, size, 1, False) for i, size in enumerate(sizes)]
    for gpu, host in itertools.product([0, 30, 60, 100], [0, 50, 200]):
        if not gpu and not host:
            continue
        devices = fe.Devices(gpus=2, gpu_memory=gpu, host_memory=host, reserve=0.0)
        placed = by_rule(found, devices)
        free = devices.free()
        assert all(size <= free[device] for device, size in placed.used.items())
        held = {t.name: sum(s.size for s in placed.shards if s.table == t.name) for t in found}
        assert all(held[table.name] in (0, table.size) for table in found)
        assert placed.left == sum(table.size for table in found if not held[table.name])
        # rows of one byte divide freely, so all fit exactly where the sum does
        assert placed.fits == (sum(sizes) <= 2 * gpu + host)
        assert placed.lacking == 0 or sum(sizes) > 2 * gpu + host


def test_what_is_read_most_is_on_the_gpu() -> None:
    hot, cold = Table("hot", 10, 50, 20, False), Table("cold", 10, 60, 1, False)
    devices = fe.Devices(gpus=1, gpu_memory=80, host_memory=80, reserve=0.0)
    placed = by_rule([cold, hot], devices)
    assert {shard.table: shard.device for shard in placed.shards} == {
        "hot": "gpu:0",
        "cold": "host",
    }


@pytest.mark.parametrize(("total", "weights"), [(10, [1, 1, 1]), (0, [3, 1]), (7, [0, 0, 5])])
def test_shares_add_up(total: int, weights: list[int]) -> None:
    found = shares(total, weights)
    assert sum(found) == total
    assert all(abs(a - total * w / sum(weights)) <= 1 for a, w in zip(found, weights, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus": -1, "gpu_memory": "1GB"}, "gpus must be an integer >= 0"),
        ({"gpus": 1}, "no memory to place"),
        ({"gpus": 1, "gpu_memory": "1GB", "reserve": 1.0}, "reserve must be"),
        ({"gpus": 1, "gpu_memory": "much"}, "much"),
    ],
)
def test_wrong_devices_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.Devices(**settings)


def test_wrong_words_are_refused() -> None:
    devices = fe.Devices(gpus=0, host_memory="1GB")
    with pytest.raises(fe.ConfigError, match="unknown placer 'torchreq'; did you mean 'torchrec'"):
        fe.place(layer(), devices, placer="torchreq")  # type: ignore[arg-type]
    with pytest.raises(fe.ConfigError, match="unknown use 'server'"):
        fe.place(layer(), devices, use="server")  # type: ignore[arg-type]
    with pytest.raises(fe.ConfigError, match="needs torchrec installed, and a GPU"):
        fe.place(layer(), devices, placer="torchrec")


def run(*command: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    return int(ended.value.code or 0)


def test_the_command_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--cardinalities", "user=1e9,hour=24", "--dim", "64", "--gpus", "4"]
    command += ["--gpu-memory", "80GB", "--host-memory", "1TB", "--placer", "featemb"]
    assert run(*command, "--method", "full", "--out", str(tmp_path / "plan.json")) == 0
    told = capsys.readouterr().out
    assert "source.rows:user" in told
    assert "placed by featemb" in told
    (row,) = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert row["placed"] == "1 GPU + host"
    assert row["host_bytes"] + row["gpu_bytes"] == row["training_bytes"]
    assert run(*command, "--ratio", "20", "--method", "hash", "--method", "pep") == 0
    told = capsys.readouterr().out
    assert "4 GPUs" in told
    assert "source.rows" not in told
