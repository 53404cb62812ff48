"""Results in Markdown pages: tables and cards between markers, made from the records of runs.

A page holds ``<!-- results NAME -->`` and ``<!-- end -->``; what lies between is replaced. Names:

- ``table DATA MODEL SIZE``, such as ``table ml1m dcnv2 10x``: every method at a size;
- ``card METHOD``: what was measured of a method, its floors and its costs;
- ``curves DATA MODEL``: differences to the full table over sizes;
- ``choices DATA``: the settings that equal tuning chose.

Run ``python -m featemb.benchmarks.publish RUNS PAGE... --costs FILE --pictures FOLDER``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from featemb.benchmarks import blocks
from featemb.benchmarks.published import Published
from featemb.benchmarks.published_cards import card
from featemb.benchmarks.published_tables import choices, curves, table
from featemb.benchmarks.report.looks import looks
from featemb.benchmarks.report.pictures import pictures
from featemb.errors import ConfigError

KINDS: dict[str, tuple[int, Callable[..., str]]] = {
    "table": (3, table),
    "card": (1, card),
    "choices": (1, choices),
    "curves": (2, curves),
}


def fill(page: str, found: Published) -> str:
    """Return a page with every marked part made anew.

    Raises:
        ConfigError: a marker asks for something else than the above.
    """
    return blocks.fill(page, "results", lambda name: _make(name, found))


def _make(name: str, found: Published) -> str:
    kind, *asked = name.split()
    if kind not in KINDS or len(asked) != KINDS[kind][0]:
        known = ", ".join(f"{one} (and {count} words)" for one, (count, _) in KINDS.items())
        raise ConfigError(f"results {name!r} is not known; Allowed: {known}")
    return KINDS[kind][1](found, *asked)


def publish(
    runs: Path, pages: Sequence[Path], costs: Path | None = None, drawings: Path | None = None
) -> list[Path]:
    """Fill pages from a folder of runs, and draw them; return the pages that changed.

    Raises:
        ConfigError: as `fill`.
        RunError: the runs hold a stale ``paired.json``, or none at all.
    """
    found = Published.read(runs, costs)
    changed = blocks.rewrite(pages, lambda page: fill(page, found))
    if drawings is not None:
        pictures(found.rows, drawings, looks(row.method for row in found.rows))
    return changed


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--costs", type=Path, help="record of speed.sweep_costs")
    parser.add_argument("--pictures", type=Path, help="folder to draw every data set and model in")
    options = parser.parse_args()
    for page in publish(options.runs, options.pages, options.costs, options.pictures):
        print(page)


if __name__ == "__main__":
    main()
