"""Rows a second from a file in Criteo's format to ids: featemb, Arrow alone, and FuxiCTR.

One made-up file (`featemb.benchmarks.speed.criteo_text`); each contender reads it in a process of
its own, in turns. A record holds, of each turn, seconds without the start of that process, and of
it and all that it started, processor seconds and the peak of resident memory; what it says beside
is of the best turn. Processor seconds do not depend on what else the machine does; a rate by them
is what all processors would give if they did nothing else and never waited: an upper bound.

- ``arrow``: parse and dictionary-encode the file on all processors, and keep nothing.
- ``encode``: both passes of `featemb.datasets.encode`, up to the sealed folder of shards.
- ``hash``: the same with hashed ids.
- ``fuxictr``: `fuxictr.preprocess.build_dataset` of FuxiCTR, all rows for training, the same
  minimum count, to its parquet file. It needs a header line, which a copy of the file gets.

Run ``python -m featemb.benchmarks.speed.encode --out FILE``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from featemb.benchmarks.speed.criteo_text import CARDINALITIES, INTEGERS, write
from featemb.errors import RunError

_PIECE = 1 << 24
_MIN_COUNT = 10
_POLL = 0.1  # seconds between looks at the memory


def arrow(file: Path, folder: Path) -> None:
    """Parse the file's pieces and dictionary-encode its text columns, on threads."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from featemb.datasets.registry import find

    pa.set_cpu_count(1)
    source, _ = find("criteo").prepare(file)

    def read(piece: Any) -> None:
        for batch in piece.batches():
            for column in batch.columns:
                if pa.types.is_string(column.type):
                    pc.dictionary_encode(column)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, source.pieces(_PIECE)):
            pass


def encode(file: Path, folder: Path) -> None:
    """Encode by vocabularies."""
    from featemb import datasets

    datasets.encode("criteo", folder / "out", file, min_count=_MIN_COUNT)


def hashed(file: Path, folder: Path) -> None:
    """Encode by a hash."""
    from featemb import datasets

    datasets.encode("criteo", folder / "out", file, hashing=datasets.Hashing())


def fuxictr(file: Path, folder: Path) -> None:
    """Encode as FuxiCTR does."""
    import polars as pl
    from fuxictr.preprocess import FeatureProcessor, build_dataset

    def read(processor: Any, path: str, sep: str, **_: Any) -> Any:
        # As FuxiCTR 2.3.10 does it, but it names the types as polars did before version 2.
        kinds = processor.dtype_dict
        return pl.scan_csv(path, separator=sep, schema_overrides=kinds, low_memory=False)

    FeatureProcessor.read_data = read
    common: dict[str, Any] = {"active": True}
    numbers = {"name": [f"I{n + 1}" for n in range(INTEGERS)], "dtype": "float", "type": "numeric"}
    words = {
        "name": [f"C{n + 1}" for n in range(len(CARDINALITIES))],
        "dtype": "str",
        "type": "categorical",
    }
    processor = FeatureProcessor(
        feature_cols=[
            common | numbers | {"fill_na": 0, "normalizer": "StandardScaler"},
            common | words | {"fill_na": ""},
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="criteo",
        data_root=str(folder),
    )
    build_dataset(
        processor,
        train_data=str(file.with_suffix(".csv")),
        data_format="csv",
        sep="\t",
        min_categr_count=_MIN_COUNT,
    )


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "arrow": arrow,
    "encode": encode,
    "hash": hashed,
    "fuxictr": fuxictr,
}


class _Watch(threading.Thread):
    """Watches the resident bytes and processor seconds of this process and its descendants."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._used: dict[int, float] = {}
        self._running = True
        self._look()
        self._before = sum(self._used.values())

    def run(self) -> None:
        while self._running:
            self._look()
            time.sleep(_POLL)

    def stop(self) -> float:
        """End, and return the processor seconds used since the start."""
        self._running = False
        self.join()
        self._look()
        return sum(self._used.values()) - self._before

    def _look(self) -> None:
        page, tick, whole = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK"), 0
        for process in _family(os.getpid()):
            with suppress(OSError):  # it may have ended
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                self._used[process] = (int(fields[11]) + int(fields[12])) / tick
                whole += int(fields[21]) * page
        self.peak = max(self.peak, whole)


def _family(process: int) -> list[int]:
    found = [process]
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def turn(name: str, file: Path) -> dict[str, Any]:
    """Measure one contender in this process."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        watch = _Watch()
        watch.start()
        began = time.perf_counter()
        CONTENDERS[name](file, Path(folder))
        seconds = time.perf_counter() - began
        used = watch.stop()
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(used, 2),
        "peak_bytes": watch.peak,
    }


def _start(name: str, file: Path) -> dict[str, Any]:
    """Measure one contender in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--turn", name, "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{name} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(file: Path, rows: int, turns: dict[str, int]) -> dict[str, Any]:
    """Measure the contenders in turns on one file; ratios are of seconds of the best turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    for number in range(max(turns.values())):
        for name, wanted in turns.items():
            if number < wanted:
                found[name].append(_start(name, file))
                print(f"{rows:,} rows, {name}: {found[name][-1]}", flush=True)
    best = {name: min(one["seconds"] for one in several) for name, several in found.items()}
    used = {
        name: min(one["processor_seconds"] for one in several) for name, several in found.items()
    }
    return {
        "rows": rows,
        "bytes": file.stat().st_size,
        "rows_per_second": {name: round(rows / one) for name, one in best.items()},
        "processor_seconds": used,
        "rows_per_second_by_processor_seconds": {
            name: round(rows * (os.cpu_count() or 1) / one) for name, one in used.items()
        },
        "peak_bytes": {
            name: max(one["peak_bytes"] for one in several) for name, several in found.items()
        },
        "share_of_arrow": _ratios(best, "arrow"),
        "share_of_arrow_by_processor_seconds": _ratios(used, "arrow"),
        "times_fuxictr": _ratios(best, "fuxictr"),
        "times_fuxictr_by_processor_seconds": _ratios(used, "fuxictr"),
        "turns": found,
    }


def _ratios(seconds: dict[str, float], to: str) -> dict[str, float]:
    if to not in seconds:
        return {}
    return {name: round(seconds[to] / one, 2) for name, one in seconds.items()}


def _with_header(file: Path) -> None:
    names = ["label", *(f"I{n + 1}" for n in range(INTEGERS))]
    names += [f"C{n + 1}" for n in range(len(CARDINALITIES))]
    with file.with_suffix(".csv").open("wb") as copy, file.open("rb") as original:
        copy.write("\t".join(names).encode() + b"\n")
        shutil.copyfileobj(original, copy, 1 << 24)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peer-rows", type=int, default=1_000_000, help="most rows for FuxiCTR")
    parser.add_argument("--folder", type=Path, help="of the files, kept for another run")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", choices=sorted(CONTENDERS), help="one contender, on --file")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.turn is not None:
        print(json.dumps(turn(options.turn, options.file)))
        return
    record: dict[str, Any] = {"settings": {"min_count": _MIN_COUNT, "turns": options.turns}}
    record["machine"] = _machine()
    record["files"] = []
    with tempfile.TemporaryDirectory() as made:
        for rows in options.rows:
            folder = (options.folder or Path(made)) / str(rows)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / "train.txt"
            if not file.exists():
                write(file, rows)
            turns = dict.fromkeys(("arrow", "encode", "hash"), options.turns)
            if rows <= options.peer_rows:
                _with_header(file)
                turns["fuxictr"] = 1
            record["files"].append(measure(file, rows, turns))
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


def _machine() -> dict[str, Any]:
    import pyarrow as pa

    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "load": [round(one, 1) for one in os.getloadavg()],
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
    }


if __name__ == "__main__":
    main()
