"""featemb on TorchRec: a stand-in for its collections, and rows that its engine divides.

TorchRec and FBGEMM are imported when something here is used, and not before.
"""

from featemb.starting import rows_later
from featemb.torchrec.checkpoint import RankCheckpoint
from featemb.torchrec.collection import FeatureEmbeddingBagCollection
from featemb.torchrec.ranks import RankBatch, part_of, parts_of
from featemb.torchrec.replace import replace_collections
from featemb.torchrec.rows import TorchRecRows, to_torchrec
from featemb.torchrec.shardable import check_shardable, refusal
from featemb.torchrec.sharded import ShardedModel, shard

__all__ = [
    "FeatureEmbeddingBagCollection",
    "RankBatch",
    "RankCheckpoint",
    "ShardedModel",
    "TorchRecRows",
    "check_shardable",
    "part_of",
    "parts_of",
    "refusal",
    "replace_collections",
    "rows_later",
    "shard",
    "to_torchrec",
]
