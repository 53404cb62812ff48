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
    for ask in (_said, _whole, _hooks):  # what says most comes first
        for name, module in layer.named_modules():
            if reason := ask(module):
                kind = type(module).__name__
                part = f"part {kind} ({name})" if name else kind
                return f"{layer.config.name}: {part}: {reason}"
    return ""


def check_shardable(layer: FeatureEmbedding) -> None:
    """Refuse a layer whose rows cannot be divided.

    Raises:
        ConfigError: names the method, the part and the reason.
    """
    if reason := refusal(layer):
        raise ConfigError(f"the rows cannot be divided among processes: {reason}")


def _said(module: nn.Module) -> str:
    """Return what a layer says itself."""
    return str(getattr(module, "unsettled", str)())


def _whole(module: nn.Module) -> str:
    """Return why a part needs its rows in one place, or ""."""
    tables = any(isinstance(child, RowTable) for child in module.children())
    if tables and isinstance(module, nn.ModuleList):
        return "holds several tables, and which of them is read depends on the batch"
    if tables and not getattr(module, "by_number", False):
        return "does more with its table than to read rows by their numbers"
    known = (Part, RowTable, StoredRows, FeatureEmbedding)
    if not isinstance(module, known) and any(True for _ in module.parameters(recurse=False)):
        return "has a form of its own, in which TorchRec and FBGEMM do not train rows"
    return ""


def _hooks(module: nn.Module) -> str:
    """Return what a layer's training does beyond steps of rows and of dense parameters, or ""."""
    if not isinstance(module, FeatureEmbedding) or hasattr(module, "unsettled"):
        return ""
    kind = type(module)
    changed = [
        name for name in _HOOKS if getattr(kind, name) is not getattr(FeatureEmbedding, name)
    ]
    return f"training does more than to step rows ({', '.join(changed)})" if changed else ""
