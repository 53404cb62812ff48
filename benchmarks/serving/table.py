"""A record of `measure` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

_COLUMNS = ("file", "before", "loaded", "growth", "served", "most")


def latency_table(record: Mapping[str, Any], title: str) -> Table:
    """Return latencies, rows a second, and how many times as fast as the network in training."""
    table = Table(title=title)
    for name in ("batch", "tables", "form"):
        table.add_column(name, justify="right" if name == "batch" else "left")
    for name in ("p50 ms", "p99 ms", "rows/s", "x trained eager"):
        table.add_column(name, justify="right")
    before = None
    for row in record["latency"]:
        tables, _, target = row["form"].partition(" ")
        if before not in (None, row["batch"]):
            table.add_section()
        before = row["batch"]
        speedup = row.get("speedup_of_medians")
        table.add_row(
            f"{row['batch']:,}",
            tables,
            target,
            f"{row['p50_ms']:.3f}",
            f"{row['p99_ms']:.3f}",
            f"{row['rows_per_second']:,}",
            "" if speedup is None else f"{speedup:.2f}",
        )
    return table


def memory_table(record: Mapping[str, Any]) -> Table:
    """Return what a fresh process takes that only serves, in MB (10^6 bytes)."""
    table = Table(title="resident memory of a fresh process that only serves, MB")
    table.add_column("tables")
    table.add_column("form")
    for name in ("tensors", "file", "before load", "loaded", "growth", "after batches", "most"):
        table.add_column(name, justify="right")
    for row in record["memory"]:
        tables, _, target = row["form"].partition(" ")
        table.add_row(
            tables,
            target if row["torch"] else f"{target} (no torch)",
            f"{tensor_bytes(record, tables) / 1e6:,.1f}",
            *(f"{row[key] / 1e6:,.1f}" for key in _COLUMNS),
        )
    return table


def tensor_bytes(record: Mapping[str, Any], tables: str) -> int:
    """Return the bytes of all tensors of the package, or of its plain twin."""
    size: int = record["subject"]["bytes" if tables == "package" else "plain_bytes"]["tensors"]
    return size
