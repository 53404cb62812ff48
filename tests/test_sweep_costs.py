"""The benchmark of a sweep's methods: which pairs it measures, and what it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from featemb.benchmarks.speed import sweep_costs

SWEEP = """
[sweep]
data = ["synthetic"]
methods = ["hash", "full+int8", "mec"]
ratios = [3, 10]
seeds = [1, 0]
[train]
dim = 4
batch_size = 32
[data.synthetic]
rows = 400
cardinalities = [50, 30]
[[part]]
[[part]]
models = ["lr"]
methods = ["unified"]
ratios = [10]
"""


def test_every_method_takes_turns_with_the_full_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    found = sweep_costs.pairs(tmp_path / "sweep.toml", 3)
    assert [name.split(", ")[2] for name in found] == ["hash", "full+int8", "mec"]
    run, full = found["synthetic, dcnv2, hash"]
    assert (run.ratio, run.seed, full.method, full.model) == (3.0, 1, "full", "dcnv2")

    out = tmp_path / "costs.json"
    flags = [str(tmp_path / "sweep.toml"), "--ratio", "3", "--turns", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["sweep_costs", *flags])
    sweep_costs.main()
    record = json.loads(out.read_text())
    assert list(record["costs"]) == [name for name in found if not name.endswith("mec")]
    assert "mec at width 4 needs at least 1,280 bytes" in capsys.readouterr().out
    for cost in record["costs"].values():
        assert cost["serving"] > 0
        assert cost["step"]["ratio"] > 0
        assert cost["lookup"]["milliseconds"] > 0
