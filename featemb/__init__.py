"""featemb: feature-embedding layers for recommender and CTR models, with every byte counted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featemb import check, optim, staging
from featemb.build import embedding
from featemb.checkpoint import Checkpoint
from featemb.compress import compress
from featemb.config import names as _names
from featemb.conversion.files import load_converted, save_converted
from featemb.conversion.report import Conversion, conversion
from featemb.convert import convert
from featemb.delta import Delta, apply_delta, delta
from featemb.errors import (
    BudgetError,
    ConfigError,
    DataError,
    ExportError,
    FeatembError,
    FormatError,
    IdError,
    RunError,
    SchemaError,
    Stopped,
    StorageError,
)
from featemb.evaluator import Evaluator
from featemb.export import export, load
from featemb.fbgemm.choice import use_kernel
from featemb.fit import fit
from featemb.frozen import FrozenEmbedding
from featemb.history import History
from featemb.ids import Jagged
from featemb.layer import FeatureEmbedding, MethodConfig, PartsEmbedding, RowEmbedding
from featemb.memory import Memory
from featemb.placement import Devices, Placement, place
from featemb.plan import plan
from featemb.schema import Feature, Schema
from featemb.served import Served, serve
from featemb.spec import Spec, parse
from featemb.stage import Stage

if TYPE_CHECKING:
    from featemb import benchmarks as benchmarks
    from featemb import datasets as datasets
    from featemb import models as models
    from featemb import torchrec as torchrec

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Checkpoint",
    "ConfigError",
    "Conversion",
    "DataError",
    "Delta",
    "Devices",
    "Evaluator",
    "ExportError",
    "FeatembError",
    "Feature",
    "FeatureEmbedding",
    "FormatError",
    "FrozenEmbedding",
    "History",
    "IdError",
    "Jagged",
    "Memory",
    "MethodConfig",
    "PartsEmbedding",
    "Placement",
    "RowEmbedding",
    "RunError",
    "Schema",
    "SchemaError",
    "Served",
    "Spec",
    "Stage",
    "Stopped",
    "StorageError",
    "apply_delta",
    "check",
    "codecs",
    "compress",
    "conversion",
    "convert",
    "delta",
    "embedding",
    "export",
    "fit",
    "load",
    "load_converted",
    "methods",
    "optim",
    "parse",
    "place",
    "plan",
    "save_converted",
    "serve",
    "staging",
    "use_kernel",
]

_LAZY = ("benchmarks", "datasets", "models", "torchrec")


def methods() -> list[str]:
    """Return the names of all registered methods."""
    return _names("method")


def codecs() -> list[str]:
    """Return the names of all registered codecs of frozen rows."""
    return _names("codec")


def __getattr__(name: str) -> Any:
    """Import the models, data sets and harness on first use."""
    if name in _LAZY:
        return importlib.import_module(f"featemb.{name}")
    raise AttributeError(f"module 'featemb' has no attribute {name!r}")
