"""Which layers' rows can be divided among processes: it follows from their parts."""

from __future__ import annotations

from torch import nn

from featemb.errors import ConfigError
from featemb.layer import FeatureEmbedding
from featemb.parts.base import Part
from featemb.parts.stored import StoredRows
from featemb.rows import RowTable

_HOOKS = ("param_groups", "penalty", "after_backward", "after_step", "begin_stage", "search")


def refusal(layer: FeatureEmbedding) -> str:
    """Return why the rows of a layer cannot be divided among processes, or "".

    They can where every table is read by row numbers alone (`Part.by_number`), and training
    consists of steps of rows and of dense parameters: a method that scores, moves, prunes or
    regularises whole tables needs them in one place. A layer says so itself by ``unsettled()``
    where that depends on what it has been through.
    """
    for name, module in layer.named_modules():
        reason = _reason(module)
        if reason:
            part = f"part {type(module).__name__} ({name})" if name else type(module).__name__
            return f"{layer.config.name}: {part}: {reason}"
    return ""


def check_shardable(layer: FeatureEmbedding) -> None:
    """Refuse a layer whose rows cannot be divided.

    Raises:
        ConfigError: names the method, the part and the reason.
    """
    if reason := refusal(layer):
        raise ConfigError(f"the rows cannot be divided among processes: {reason}")


def _reason(module: nn.Module) -> str:
    """Return why a module of a layer is in the way, or ""."""
    if isinstance(module, FeatureEmbedding):
        return _unsettled(module)
    tables = any(isinstance(child, RowTable) for child in module.children())
    if tables and not isinstance(module, nn.ModuleList) and not getattr(module, "by_number", False):
        return "does more with its table than to read rows by their numbers"
    if isinstance(module, nn.ModuleList) and tables:
        return "reads one of several tables, which depends on the batch"
    if not isinstance(module, (Part, RowTable, StoredRows, nn.ModuleList)):
        return "has a form of its own, in which TorchRec and FBGEMM do not train rows"
    return ""


def _unsettled(layer: FeatureEmbedding) -> str:
    """Return what training does beyond steps of rows and of dense parameters, or ""."""
    own = getattr(layer, "unsettled", None)
    if own is not None:
        return str(own())
    changed = [
        name for name in _HOOKS if getattr(type(layer), name) is not getattr(FeatureEmbedding, name)
    ]
    return f"training does more than to step rows ({', '.join(changed)})" if changed else ""
