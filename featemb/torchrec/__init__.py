"""featemb on TorchRec: a stand-in for its collections, and rows that its engine divides.

TorchRec and FBGEMM are imported when something here is used, and not before.
"""

from featemb.torchrec.collection import FeatureEmbeddingBagCollection
from featemb.torchrec.replace import replace_collections
from featemb.torchrec.rows import TorchRecRows, to_torchrec
from featemb.torchrec.shardable import check_shardable, refusal
from featemb.torchrec.sharded import ShardedModel, shard

__all__ = [
    "FeatureEmbeddingBagCollection",
    "ShardedModel",
    "TorchRecRows",
    "check_shardable",
    "refusal",
    "replace_collections",
    "shard",
    "to_torchrec",
]
