"""The worked example of the docs: train, compress, export, serve without torch; and its numbers.

Run ``python -m featemb.benchmarks.serving.example --out docs/results/serving/example.json`` in a
checkout: the server is its ``docs/examples/serve_onnx.py``. Every step is a command as in the docs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import torch

import featemb
from featemb.benchmarks import environment, records
from featemb.benchmarks.metrics import auc
from featemb.datasets import nycflights13_demo
from featemb.datasets.splitting import assign

DATA = "nycflights13_demo"
SERVER = Path(__file__).resolve().parent.parent.parent / "docs" / "examples" / "serve_onnx.py"
METHODS = {"full": (), "compressed": ("--method", "unified(lookups=2)+int8", "--ratio", "10")}
_TEST = 2
# The process that serves: an import of torch or featemb is an error in it. It tells its memory.
_ALONE = """
import runpy, sys, time

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "featemb"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Refuse())

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

sys.argv = sys.argv[1:]
server = runpy.run_path(sys.argv[0])
before = resident()
session, manifest = server["load"](sys.argv[1])
loaded = resident()
server["main"]()
import csv, json
import numpy as np
rows = list(csv.DictReader(open(sys.argv[2], newline="")))[:512]
seconds = []
for _ in range(60):
    began = time.perf_counter()
    server["score"](session, manifest, rows)
    seconds.append(time.perf_counter() - began)
print(json.dumps({
    "before": before, "loaded": loaded, "served": resident(),
    "batch_ms": round(1e3 * float(np.median(seconds[10:])), 3),
    "modules": sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "featemb"}),
}))
"""


def command(*arguments: str) -> str:
    """Run ``featemb`` with arguments; return what it printed.

    Raises:
        RunError: it failed.
    """
    return _told([sys.executable, "-m", "featemb", *arguments])


def _told(arguments: Sequence[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise featemb.RunError(f"{' '.join(arguments[:4])} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def train(folder: Path, extra: Sequence[str], options: Sequence[str]) -> Path:
    """Train one model, keep it, and return the folder of its run."""
    command(
        "train", "--data", DATA, "--model", "deepfm", "--save-model", "--quiet",
        "--out", str(folder), *extra, *options,
    )  # fmt: skip
    (run,) = (one for one in folder.iterdir() if (one / "run.json").is_file())
    return run


def test_rows() -> pa.Table:
    """Return the raw rows of the test split, in file order."""
    source, recipe = nycflights13_demo.prepare()
    table = pa.Table.from_batches(source.batches())
    return table.filter(pa.array(assign(source, recipe) == _TEST))


def serve(model: Path, rows: pa.Table, folder: Path) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Score raw rows in a process that has no torch; return the scores and what it took."""
    texts = pa.table({name: _texts(rows.column(name)) for name in rows.column_names})
    pyarrow.csv.write_csv(texts, folder / "rows.csv")
    told = _told(
        [sys.executable, "-c", _ALONE, str(SERVER), str(model), str(folder / "rows.csv"),
         str(folder / "scores.csv")]
    )  # fmt: skip
    return np.loadtxt(folder / "scores.csv"), json.loads(told)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def measure(options: Sequence[str] = (), limit: int | None = None) -> dict[str, Any]:
    """Return the record: sizes, AUC of both models, differences, time and memory of the server.

    Args:
        options: further options of ``featemb train``.
        limit: serve only the first rows of the test split; None: all.

    Raises:
        RunError: a command failed, or the served scores are not those of the model.
    """
    rows = test_rows().slice(0, limit)
    label = rows.column("label").to_numpy()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="featemb-example-") as name:
        for method, extra in METHODS.items():
            folder = Path(name) / method
            folder.mkdir()
            run = train(folder, extra, options)
            command("export", str(run), "--to", "onnx", "--out", str(folder / "ctr.onnx"))
            scores, server = serve(folder / "ctr.onnx", rows, folder)
            record = records.read(run)
            with torch.no_grad():
                kept = featemb.load(run / "model.safetensors")
                wanted = kept.raw(rows.drop_columns(["label"])).double().sigmoid().numpy()
            found[method] = {
                "method": record["config"]["method"],
                "ratio": record["bytes"]["ratio"],
                "serving_bytes": record["bytes"]["serving"],
                "onnx_bytes": (folder / "ctr.onnx").stat().st_size,
                "test_auc": record["metrics"]["test"]["auc"]["value"],
                "served_auc": float(auc(label, scores)),
                "largest_difference": float(np.abs(scores - wanted).max()),
                "server": server,
            }
    _check(found)
    return {
        "rows": rows.num_rows,
        "options": list(options),
        "models": found,
        "machine": environment.device("cpu"),
        "versions": environment.versions(),
    }


def _check(found: dict[str, Any]) -> None:
    for method, one in found.items():
        if one["server"]["modules"]:
            raise featemb.RunError(f"{method}: the server imported {one['server']['modules']}")
        if not one["largest_difference"] < 1e-5:
            raise featemb.RunError(f"{method}: served scores differ by {one['largest_difference']}")


def main() -> None:
    """Run the example from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    text = json.dumps(measure(("--epochs", "2")), indent=1)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
