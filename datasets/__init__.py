"""Data sets: protocols, streamed encoding, loading. Imports as ``featemb.datasets``."""

if __name__ != "featemb.datasets":
    raise ImportError(
        "this folder is the package featemb.datasets: write 'import featemb.datasets'. For a "
        "third-party package named 'datasets', run python -P or from another folder."
    )

from featemb.datasets.bulk.public import encode
from featemb.datasets.dataset import Bag, Batch, Dataset, Split
from featemb.datasets.encoding import Encoding
from featemb.datasets.hashed import Hashing
from featemb.datasets.infer import infer
from featemb.datasets.recipe import Column, Recipe, SplitRule
from featemb.datasets.registry import find, load, names
from featemb.datasets.shard_index import Index, Shard, read_index, verify
from featemb.datasets.sharded import ShardedSplit, open_shards
from featemb.datasets.synthetic import synthetic
from featemb.datasets.timeline import Timeline, timeline

__all__ = [
    "Bag",
    "Batch",
    "Column",
    "Dataset",
    "Encoding",
    "Hashing",
    "Index",
    "Recipe",
    "Shard",
    "ShardedSplit",
    "Split",
    "SplitRule",
    "Timeline",
    "encode",
    "find",
    "infer",
    "load",
    "names",
    "open_shards",
    "read_index",
    "synthetic",
    "timeline",
    "verify",
]
