"""The page on several machines: its numbers are the planner's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import featemb as fe

pytest.importorskip("torchrec")

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(
    r"^\| `(\w+)` \| (\d+) \| `(row_\w+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.M
)
SCHEMA = fe.Schema([fe.Feature("id", 10**9)])


def rows() -> list[tuple[str, ...]]:
    found = ROW.findall((ROOT / "docs" / "distributed.md").read_text("utf-8"))
    assert {row[0] for row in found} == {"full", "unified", "qr"}
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row[:3]))
def test_memory_of_each_process_is_what_the_planner_says(row: tuple[str, ...]) -> None:
    method, ratio, optimizer, *sizes = row
    wanted = None if ratio == "1" else float(ratio)
    layer = fe.embedding(SCHEMA, method, dim=64, ratio=wanted, device="meta")
    for ranks, size in zip((None, 8, 16), sizes, strict=True):
        digits = len(size.partition(".")[2])
        if ranks is None:
            held = sum(table.size for table in fe.placement.tables(layer, "training", optimizer))
        else:
            devices = fe.Devices(gpus=ranks, gpu_memory="1TB")
            placed = fe.place(layer, devices, optimizer=optimizer, placer="torchrec")
            assert placed.fits
            assert len(placed.used) == ranks
            held = max(placed.used.values())
        assert f"{held / 1e9:.{digits}f}" == size
