"""Five million rows, over five million words, under a hard limit of memory for every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from featemb.benchmarks.speed import criteo_text
from featemb.datasets import Column, Recipe, SplitRule
from featemb.datasets.shard_index import read_index, verify

ROWS = 5_000_000
ADDRESSES = 1_600_000_000  # of a process: 850 MB are code and libraries before it reads a row
MEMORY = 2_200_000_000  # resident, of all processes together
SIZES = (3, 5000, 30_000_000, 30_000_000)

SCRIPT = """
import json, resource, sys
from pathlib import Path
from featemb.datasets import Recipe
from featemb.datasets.bulk.encode import encode_shards
from featemb.datasets.source import text
import pyarrow as pa
folder, limit, memory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
recipe = Recipe.from_json((folder / "recipe.json").read_text())
kinds = {"label": pa.int8()}
kinds |= {c.name: pa.string() if c.kind == "categorical" else pa.int64() for c in recipe.columns}
names = ["label", "I1", "C1", "C2", "C3", "C4"]
source = text(folder / "train.txt", names, kinds, delimiter="\\t")
encode_shards(source, recipe, folder / "out", workers=2, memory=memory)
# ru_maxrss of this process would count what its parent held when it forked.
(line,) = (one for one in open("/proc/self/status") if one.startswith("VmHWM"))
own = int(line.split()[1]) * 1024
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
try:
    bytearray(limit)
except MemoryError:
    print(json.dumps({"own": own, "worker": workers}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and units of Linux")
def test_five_million_rows_under_a_hard_limit(tmp_path: Path) -> None:
    criteo_text.write(tmp_path / "train.txt", ROWS, cardinalities=SIZES, integers=1, zipf=0.3)
    columns = [Column(name=f"C{n}", min_count=1) for n in range(1, 5)]
    columns.append(Column(name="I1", kind="numeric"))
    recipe = Recipe(label="label", columns=columns, split=SplitRule(seed=1))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)]
    command += [str(ADDRESSES), str(MEMORY)]
    # Arrow's own allocator reserves address space, more or less of it from run to run.
    env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    used = json.loads(done.stdout)
    print(used)
    assert used["own"] + 2 * used["worker"] <= MEMORY
    index = read_index(tmp_path / "out")
    verify(index)
    assert min(index.schema.cardinalities[2:]) > 2_000_000
    counts = index.counts()["C3"]
    train = sum(shard.rows for shard in index.splits["train"])
    assert counts.sum() == train
    assert (np.diff(counts[1:]) <= 0).all()
    seen = np.zeros(len(counts), np.int64)
    for shard in index.splits["train"]:
        seen += np.bincount(shard.open("ids")[:, 2], minlength=len(counts))
    np.testing.assert_array_equal(seen, counts)
    values = index.encoding().values["C3"]
    assert len(values) == len(counts) - 1
