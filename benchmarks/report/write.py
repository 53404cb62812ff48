"""`write_report`: run folders in, ``report.html`` and pictures out."""

from __future__ import annotations

import os
from pathlib import Path

from featemb.benchmarks.records import read_all
from featemb.benchmarks.report.aggregate import aggregate
from featemb.benchmarks.report.looks import looks
from featemb.benchmarks.report.page import page
from featemb.benchmarks.report.pictures import pictures
from featemb.errors import RunError
from featemb.files import replacing


def write_report(
    runs_dir: str | Path,
    out: str | os.PathLike[str] | None = None,
    title: str = "Accuracy against memory",
) -> list[Path]:
    """Write ``report.html`` and a picture a data set and model; return their paths.

    Args:
        runs_dir: folder of the runs.
        out: folder of the report; None takes the runs' own.
        title: heading of the page.

    Raises:
        RunError: the folder does not exist or holds no run, a curve is not readable, or
            ``paired.json`` is needed and stale.
    """
    runs = read_all(runs_dir)
    if not runs.records:
        raise RunError(f"{os.fspath(runs_dir)!r} holds no run record")
    folder = Path(runs_dir if out is None else out)
    folder.mkdir(parents=True, exist_ok=True)
    rows = aggregate(Path(runs_dir), runs.records.values())
    drawn = looks(row.method for row in rows)
    html = page(title, rows, runs.records, runs.unreadable, drawn, runs_dir)
    return [_write(folder / "report.html", html), *pictures(rows, folder, drawn)]


def _write(path: Path, text: str) -> Path:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")
    return path
