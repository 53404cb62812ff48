"""What is measured: a package, and the same network over plain fp32 tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import featemb
from featemb import models
from featemb.benchmarks.exporting import model_file
from featemb.errors import ConfigError
from featemb.export import Artefact
from featemb.frozen import FrozenEmbedding
from featemb.layer import FeatureEmbedding
from featemb.memory import tensor_bytes
from featemb.models import CTRModel
from featemb.schema import Schema

Served = FrozenEmbedding | CTRModel


@dataclass(frozen=True)
class Subject:
    """A package to measure.

    Attributes:
        package: its file.
        schema: of its ids.
        numeric: number of its numeric columns.
        facts: what it is, JSON-able.
        trained: makes the same network, or layer, over plain fp32 tables as it comes from training,
            in eval mode; its weights are new.
        plain: a package of that, frozen; None where it is not wanted.
    """

    package: Path
    schema: Schema
    numeric: int
    facts: Mapping[str, Any]
    trained: Callable[[], nn.Module]
    plain: Path | None

    def columns(self, ids: str) -> dict[str, Any]:
        """Return what `featemb.benchmarks.serving.resident.draw` draws batches from."""
        features = self.schema.features
        return {
            "cardinalities": [feature.cardinality for feature in features],
            "multi": [feature.multi for feature in features],
            "numeric": self.numeric,
            "ids": ids,
        }


def read(path: Path, folder: Path, plain: bool = True) -> Subject:
    """Return a package, or that of a run, as it is to be measured.

    Args:
        path: the package, or the folder of a run that kept its model.
        folder: where to write the plain one.
        plain: whether to make the same network over plain tables.

    Raises:
        ConfigError: a file is no package that keeps its layer or model.
        FormatError: the file is corrupt.
        RunError: there is none, or the run kept no model.
        SchemaError: plain tables are wanted, and a feature is unbounded.
    """
    file = model_file(path)
    net = module_of(file)
    outline = Outline.of(net)
    schema = outline.schema
    name, config, numeric = outline.model or (None, None, 0)
    facts = {
        "model": name,
        "config": config,
        "features": schema.num_features,
        "rows": sum(schema.cardinalities) if schema.bounded else None,
        "dim": outline.dim,
        "numeric": numeric,
        "bytes": {"file": file.stat().st_size, **_bytes(net)},
    }
    beside = None
    if plain:
        beside = folder / "plain.safetensors"
        twin = outline.trained().freeze("fp32")
        write(twin, beside)
        facts["plain_bytes"] = {"file": beside.stat().st_size, **_bytes(twin)}
    return Subject(file, schema, numeric, facts, outline.trained, beside)


def module_of(file: Path) -> Served:
    """Return the layer or model of a package.

    Raises:
        ConfigError: the file keeps none, as ONNX and compiled files do.
    """
    found = featemb.load(file)
    module: Any = found.module if isinstance(found, Artefact) else found
    if not isinstance(module, (FrozenEmbedding, CTRModel)):
        raise ConfigError(
            f"{os.fspath(file)!r} keeps no layer or model to compare with: give its safetensors "
            "package, from which the other forms are made"
        )
    return module


@dataclass(frozen=True)
class Outline:
    """A network without its tensors.

    Attributes:
        schema: of its ids.
        dim: width of a feature.
        model: name and settings, and the number of numeric columns; None for a layer alone.
    """

    schema: Schema
    dim: int
    model: tuple[str, Mapping[str, Any], int] | None

    @classmethod
    def of(cls, net: Served) -> Outline:
        """Return that of a served layer or model."""
        if isinstance(net, FrozenEmbedding):
            return cls(net.schema, net.dim, None)
        model = (net.name, net.config.to_dict(), net.numeric)
        return cls(net.embedding.schema, net.embedding.dim, model)

    def trained(self) -> FeatureEmbedding | CTRModel:
        """Return the network, or layer, over plain fp32 tables; its weights are new.

        Raises:
            SchemaError: a feature is unbounded.
        """
        table = featemb.embedding(self.schema, "full", dim=self.dim)
        if self.model is None:
            return table.eval()
        name, config, numeric = self.model
        return models.build(name, embedding=table, numeric=numeric, **config).eval()


def untrained(
    schema: Schema,
    model: str,
    method: str,
    size: Mapping[str, Any],
    settings: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the package of a model that nobody trained: it takes the same time as a trained one.

    Args:
        schema: the features and numeric columns.
        model: name of a CTR model.
        method: text of the method and its codec.
        size: of the layer: dim, and ratio or budget.
        settings: of the model.
        path: the package.

    Raises:
        ConfigError: a name or setting is unknown.
        BudgetError: the method cannot get that small.
    """
    models.find(model)
    layer = featemb.embedding(schema, method, **size)
    write(models.build(model, embedding=layer, **settings).freeze(), path)


def write(net: nn.Module, path: Path) -> None:
    """Write a frozen layer or model."""
    if isinstance(net, CTRModel):
        models.save(net, path)
    else:
        assert isinstance(net, FrozenEmbedding)
        net.save(path)


def _bytes(net: Served) -> dict[str, int]:
    """Bytes of the embedding layers, and of all tensors."""
    every = sum(tensor_bytes(one) for one in (*net.parameters(), *net.buffers()))
    return {"serving": net.memory().serving, "tensors": every}
