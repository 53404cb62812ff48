"""Run the tests that need a CUDA device, and write what came out.

Run ``make gpu`` in a checkout; or, with any Python that has torch for CUDA, pytest and what featemb
needs, ``python -m featemb.benchmarks.gpu_check --out gpu.json``. The file says on which device,
with which versions, what each test did and how long it took. The exit code is 0 only where a device
is there, at least one test ran, and none failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from featemb.benchmarks import environment
from featemb.files import replacing

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Outcomes:
    """A pytest plugin that keeps the outcome and the seconds of every test."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the worst of a test's phases."""
        one = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        one["seconds"] = round(one["seconds"] + report.duration, 3)
        if report.outcome == "passed":
            return
        one["outcome"] = report.outcome
        if report.failed:
            one["message"] = str(report.longreprtext)[-2000:]
        else:
            one["message"] = str(report.longrepr[-1])


def run(tests: list[Path], more: list[str]) -> dict[str, Any]:
    """Run the tests marked ``gpu`` and return the result file's content."""
    import pytest

    plugin = Outcomes()
    code = pytest.main(["-m", "gpu", "-q", *map(str, tests), *more], plugins=[plugin])
    counts = Counter(one["outcome"] for one in plugin.tests.values())
    there = torch.cuda.is_available()
    return {
        "device": environment.device("cuda") if there else None,
        "cuda": torch.version.cuda,
        "versions": environment.versions(),
        "git": environment.git(),
        "exit_code": int(code),
        "counts": dict(counts),
        "tests": dict(sorted(plugin.tests.items())),
    }


def main() -> None:
    """Run the tests and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tests", type=Path, nargs="+", default=[TESTS], help="folders or files")
    arguments, more = parser.parse_known_args()
    found = run(arguments.tests, more)
    with replacing(arguments.out) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    counts = found["counts"]
    print(f"{counts} on {found['device'] or 'no CUDA device'}; written to {arguments.out}")
    good = found["device"] is not None and counts.get("passed") and not counts.get("failed")
    sys.exit(0 if good and found["exit_code"] == 0 else 1)


if __name__ == "__main__":
    main()
