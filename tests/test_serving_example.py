"""The worked example: it runs, without torch in the server, and the page says what it gave."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from featemb.benchmarks.serving import example

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "results" / "serving"


def test_the_page_shows_the_server_as_it_is() -> None:
    server = (ROOT / "docs" / "examples" / "serve_onnx.py").read_text("utf-8")
    assert f"```py\n{server}```" in (ROOT / "docs" / "serving-example.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_raw_rows_are_scored_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "METHODS", {"compressed": example.METHODS["compressed"]})
    small = ("--rows", "2000", "--epochs", "1", "--set", "hidden=[8]", "--dim", "4")
    record = example.measure(small, limit=300)
    found = record["models"]["compressed"]
    assert record["rows"] == 300
    assert found["server"]["modules"] == []
    assert found["largest_difference"] < 1e-6
    assert 0.2 < found["served_auc"] < 0.8


def lines(models: Mapping[str, Any]) -> list[str]:
    """The table of the page, from the record."""
    found = []
    for one in models.values():
        server = one["server"]
        found.append(
            f"| `{one['method']}` | {one['serving_bytes']:,} | {one['onnx_bytes']:,} "
            f"| {one['test_auc']:.5f} | {one['served_auc']:.5f} | {one['largest_difference']:.1e} "
            f"| {server['batch_ms']:.1f} | {server['before'] / 1e6:.1f} "
            f"| {server['loaded'] / 1e6:.1f} |"
        )
    return found


def test_the_numbers_of_the_page_are_those_of_the_record() -> None:
    record = json.loads((RECORDS / "example.json").read_text("utf-8"))
    page = (ROOT / "docs" / "serving-example.md").read_text("utf-8")
    assert len(record["models"]) == len(example.METHODS)
    assert "\n".join(lines(record["models"])) in page, "\n".join(lines(record["models"]))
    assert f"{record['rows']:,} raw rows" in page
    for one in record["models"].values():
        assert not one["server"]["modules"]
        assert one["served_auc"] == pytest.approx(one["test_auc"], abs=1e-6)
