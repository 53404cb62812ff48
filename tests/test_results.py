"""The numbers in the README and the docs are those of the committed run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featemb.benchmarks.records import read_all
from featemb.benchmarks.report import Row, aggregate

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"ml1m": ("README.md", "docs/results.md"), "demo": ("docs/results.md",)}
PAGES |= dict.fromkeys(("criteo_head80k", "frappe_nfm30"), ("docs/results.md",))


def line(row: Row) -> str:
    """A row of the Markdown tables."""
    change = f"{row.difference.value:+.4f}" if row.difference else ""
    size = f"{row.serving:,}"
    return f"| `{row.method}` | {size} | {row.ratio:.1f}x | {row.auc.value:.4f} | {change} |"


@pytest.mark.parametrize("results", PAGES)
def test_tables_are_those_of_the_records(results: str) -> None:
    folder = ROOT / "docs" / "results" / results
    runs = read_all(folder)
    assert not runs.unreadable
    rows = aggregate(folder, runs.records.values())
    assert any(row.is_full for row in rows)
    for page in PAGES[results]:
        text = (ROOT / page).read_text()
        missing = [line(row) for row in rows if line(row) not in text]
        assert not missing, f"{page} lacks:\n" + "\n".join(missing)


def test_speed_is_that_of_the_record() -> None:
    record = json.loads((ROOT / "docs/results/speed/training_step.json").read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    for value, digits in zip(record["ratios_of_medians"].values(), (2, 1, 2), strict=True):
        assert f"| {value:.{digits}f} |" in text
