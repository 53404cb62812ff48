"""`TorchRecRows`: a `RowTable` whose rows are a table of a TorchRec ``EmbeddingCollection``.

Address and combine stay as they are, on the data-parallel side; what TorchRec is asked for are row
numbers. So one way of dividing rows serves every method that reads rows by number.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.layer import outermost
from featemb.rows import row_tables
from featemb.torchrec.shardable import check_shardable

if TYPE_CHECKING:
    from featemb.codecs.base import Codec
    from featemb.parts.base import Part
    from featemb.starting import Start
    from featemb.torchrec.local import LocalRows

FEATURE = "rows"
_MULTIPLE = 4  # FBGEMM's kernels read rows in steps of 4 numbers


def require_torchrec() -> None:
    """Say what to install where TorchRec is missing.

    Raises:
        ConfigError: it cannot be imported.
    """
    if find_spec("torchrec") is None or find_spec("fbgemm_gpu") is None:
        raise ConfigError("this needs TorchRec: pip install 'featemb[torchrec]' and FBGEMM")


class TorchRecRows(nn.Module):
    """Rows of a table in a TorchRec ``EmbeddingCollection``.

    The collection is an ordinary submodule: ``DistributedModelParallel`` finds and shards it.
    Its columns are filled up with zeros to a multiple of 4, which FBGEMM asks for.

    Args:
        weight: float32 ``[R, C]``, the rows; they are copied.
        name: of the table.

    Attributes:
        collection: the collection, or what TorchRec has put in its place.
        num_rows: R.
        width: C.
        name: of the table.
        local: what steps the shards of this process; set by `featemb.torchrec.shard`.
        start: how rows start that are made in each process alone (see `featemb.starting`).
    """

    memory_parts: ClassVar[dict[str, str]] = {"weight": "rows"}
    local: LocalRows | None = None
    start: Start | None = None

    def __init__(self, weight: Tensor, name: str) -> None:
        require_torchrec()
        from torchrec.modules.embedding_configs import EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection

        super().__init__()
        self.num_rows, self.width = weight.shape
        self.name = name
        columns = -(-self.width // _MULTIPLE) * _MULTIPLE
        config = EmbeddingConfig(
            name=name,
            embedding_dim=columns,
            num_embeddings=self.num_rows,
            feature_names=[FEATURE],
            init_fn=torch.nn.init.zeros_ if weight.device.type != "meta" else None,
        )
        self.collection: Any = EmbeddingCollection(tables=[config], device=weight.device)
        with torch.no_grad():
            self.parameter[:, : self.width] = weight

    @property
    def parameter(self) -> Tensor:
        """The table before it is sharded, ``[R, columns]``."""
        weight: Tensor = self.collection.embeddings[self.name].weight
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the table before it is sharded."""
        rows, columns = self.parameter.shape
        return rows, columns

    def forward(self, rows: Tensor) -> Tensor:
        """Gather rows; int64 of any shape ``[...]`` gives ``[..., C]``."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        flat = rows.reshape(-1)
        # one bag of all rows: TorchRec gives a vector for each of its values, in their order
        lengths = torch.full((1,), flat.numel(), dtype=torch.int64, device=flat.device)
        asked = KeyedJaggedTensor(keys=[FEATURE], values=flat, lengths=lengths)
        if self.local is not None:
            self.local.before(torch.is_grad_enabled())
        vectors: Tensor = self.collection(asked)[FEATURE].values()
        if self.local is not None:
            self.local.after(torch.is_grad_enabled())
        return vectors[:, : self.width].reshape(*rows.shape, self.width)

    def row_optimizer(
        self, name: str, lr: float, weight_decay: float
    ) -> torch.optim.Optimizer | None:
        """Return what steps the rows (see `featemb.optim.build`); None before they are sharded.

        Raises:
            ConfigError: the rows were sharded for another optimizer.
        """
        return None if self.local is None else self.local.optimizer(name, lr, weight_decay)

    def frozen(self, codec: Codec) -> Part:
        """Return the stored form of the rows, before they are sharded."""
        return codec.encode(self.parameter.detach()[:, : self.width])

    def extra_repr(self) -> str:
        """Shape, for printing."""
        return f"{self.num_rows} x {self.width}"


def to_torchrec(model: nn.Module) -> nn.Module:
    """Put the rows of every embedding layer of a model into TorchRec tables, in place.

    Answers stay the same. ``DistributedModelParallel(model)`` then shards them.

    Args:
        model: a `featemb.FeatureEmbedding`, or a model that holds some.

    Returns:
        The model.

    Raises:
        ConfigError: there is no layer, TorchRec is not installed, or a layer's rows cannot be
            divided; names the part and the reason.
    """
    require_torchrec()
    found = outermost([model])
    if not found:
        raise ConfigError("the model holds no featemb.FeatureEmbedding, there is nothing to shard")
    for layer in found:
        check_shardable(layer)
    for path, parent, name in list(row_tables(model)):
        table = getattr(parent, name)
        rows = TorchRecRows(table.weight.detach(), path.replace(".", "_"))
        rows.start = table.start
        setattr(parent, name, rows.train(table.training))
    return model
