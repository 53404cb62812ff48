"""`use_kernel`: whose kernels look up and step the rows of a model."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from featemb.errors import ConfigError, nearest
from featemb.fbgemm.optimizers import require_fbgemm
from featemb.fbgemm.rows import FbgemmRows
from featemb.layer import FeatureEmbedding, outermost
from featemb.rows import RowTable, row_tables

KERNELS = ("torch", "fbgemm")
M = TypeVar("M", bound=nn.Module)


def check_kernel(kernel: str) -> None:
    """Refuse an unknown kernel.

    Raises:
        ConfigError: names it and what is allowed.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"unknown kernel {kernel!r}; {nearest(str(kernel), KERNELS)}")


def kernel_of(model: nn.Module) -> str:
    """Return whose kernels train the rows of a model."""
    return "fbgemm" if any(isinstance(one, FbgemmRows) for one in model.modules()) else "torch"


def use_kernel(model: M, kernel: str) -> M:
    """Choose whose kernels look up and step the rows of a model's embedding layers, in place.

    Answers, names of the state dict and the frozen form stay as they are. Make the optimizers
    afterwards, with `featemb.optim.build` (`featemb.fit` does both): a table under "fbgemm" gets
    an optimizer of its own, whose step is FBGEMM's fused kernel.

    Args:
        model: a `featemb.FeatureEmbedding`, or a model that holds some.
        kernel: "torch": featemb's own row optimizers; "fbgemm": FBGEMM's table-batched embedding
            (``SplitTableBatchedEmbeddingBagsCodegen``), on the CPU or on CUDA.

    Returns:
        The model.

    Raises:
        ConfigError: the kernel is unknown or not installed; there is no layer, or no table; or
            FBGEMM cannot train a layer's rows: names the method, the part and the reason.
    """
    check_kernel(kernel)
    layers = outermost([model])
    if not layers:
        raise ConfigError("the model holds no featemb.FeatureEmbedding, it has no rows to train")
    if kernel == "fbgemm":
        require_fbgemm()
        for layer in layers:
            _check(layer)
    made: dict[RowTable, RowTable] = {}
    for _, parent, name in list(row_tables(model)):
        table = getattr(parent, name)
        if isinstance(table, FbgemmRows) != (kernel == "fbgemm"):
            if table not in made:
                made[table] = _other(table)
            setattr(parent, name, made[table])
    return model


def _other(table: RowTable) -> RowTable:
    """Return a table's rows under the other kernel."""
    if isinstance(table, FbgemmRows):
        return table.plain()
    return FbgemmRows(table.weight).train(table.training)


def _check(layer: FeatureEmbedding) -> None:
    """Refuse a layer whose rows FBGEMM cannot train.

    What it needs of a layer is what dividing its rows needs: rows are read by number alone, and
    trained by steps of the rows that were read.

    Raises:
        ConfigError: names the method, the part and the reason.
    """
    from featemb.torchrec.shardable import refusal

    reason = refusal(layer)
    tables = list(row_tables(layer))
    if not reason and not tables:
        reason = f"{layer.config.name}: it has no table of rows"
    if not reason and any(getattr(parent, name).weight.is_meta for _, parent, name in tables):
        reason = f"{layer.config.name}: its rows are not made yet (device meta)"
    if reason:
        raise ConfigError(f"the kernel 'fbgemm' cannot train the rows: {reason}")
