"""Which rows no other row beats in both bytes and AUC."""

from __future__ import annotations

from collections.abc import Sequence

from featemb.benchmarks.report.aggregate import Row


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that have a higher AUC than every row of as few bytes, smallest first.

    Point estimates decide: two rows whose difference is not shown may be one on and one off it.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda one: (one.serving, -one.auc.value)):
        if not best or row.auc.value > best[-1].auc.value:
            best.append(row)
    return best
