"""A trained model and its conversion, from the command line: where it comes from, what it scores.

A model comes from a run's folder, or from a factory, ``package.module:function``, which makes it
without its weights; these come from a file of tensors. Nothing is unpickled. To score it, the
factory's module offers ``batches(path)``, or ``batches(path, label)``: pairs (inputs, labels),
where inputs are a tensor, a mapping, or a tuple of the model's arguments, and labels 0 or 1.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featemb.benchmarks import exporting, records, sources, stats
from featemb.benchmarks.config import RunConfig
from featemb.benchmarks.evaluation import predict
from featemb.benchmarks.metrics import auc_interval
from featemb.datasets import Dataset
from featemb.errors import ConfigError, DataError, FormatError
from featemb.export import Artefact, export, load
from featemb.schema import Schema

Floats = npt.NDArray[np.float64]
Scorer = Callable[[nn.Module], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Subject:
    """A model to convert.

    Attributes:
        model: the model.
        schema: its features with counts, for a run whose data are at hand.
        scorer: model -> (labels, scores) ``[N]`` of test rows; None where there are no data.
        save: writes the converted model to a file.
    """

    model: nn.Module
    schema: Schema | None
    scorer: Scorer | None
    save: Callable[[nn.Module, Path], None]


@dataclass(frozen=True)
class Measured:
    """AUC before and after on the same rows.

    Attributes:
        rows: number of test rows.
        before: value, low and high (95%, DeLong) of the model.
        after: those of the converted one.
        difference: after minus before, paired by row (DeLong et al., 1988).
    """

    rows: int
    before: dict[str, float]
    after: dict[str, float]
    difference: stats.Difference

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def measure(scorer: Scorer, before: nn.Module, after: nn.Module) -> Measured:
    """Score a model and its conversion on the same rows.

    Raises:
        RunError: labels are not 0 and 1, or a score is not finite.
    """
    labels, first = scorer(before)
    same, second = scorer(after)
    if not np.array_equal(labels, same):
        raise DataError("the batches gave other labels at the second time: they must be the same")
    return Measured(
        rows=len(labels),
        before=auc_interval(labels, first),
        after=auc_interval(labels, second),
        difference=stats.delong(labels, second, first),
    )


def of_run(run: Path, data: str | None, options: Mapping[str, Any], score: bool) -> Subject:
    """Read the model that a run kept (``--save-model``), and its data set; or a package alone.

    The converted model is saved as a package, with what encodes raw rows where there was such.

    Args:
        run: folder of the run, or a safetensors package of a model.
        data: the table that the run was trained on, where its data set is no registered one.
        options: where the data lie, as for `featemb.datasets.load`.
        score: whether data are wanted.

    Raises:
        RunError: the folder holds no finished run with its model.
        DataError: the data are missing, or others than those of the run.
        FormatError: a file is corrupt, or holds no model.
    """
    file = exporting.model_file(run)
    found = load(file)
    model = found.module if isinstance(found, Artefact) else found
    if not isinstance(model, nn.Module):
        raise FormatError(f"{os.fspath(file)!r} is exported already: convert its safetensors file")
    schema, scorer = None, None
    if score and run.is_dir():
        record = records.read(run)
        dataset = _data_of(record, data, options)
        schema, scorer = dataset.schema, _of_split(dataset, record["config"]["eval_batch_size"])

    def save(made: nn.Module, path: Path) -> None:
        more: dict[str, Any] = {}
        if isinstance(found, Artefact):
            more = {"encoder": found.encoder, "about": found.manifest["about"]}
        export(made, path, examples=exporting.read_rows(file.parent), **more)

    return Subject(model, schema, scorer, save)


def _of_split(dataset: Dataset, batch_size: int) -> Scorer:
    split = dataset.splits["test"]

    def score(net: nn.Module) -> tuple[Floats, Floats]:
        found = predict(net, split, batch_size, torch.device("cpu"))
        return split.label.numpy().astype(np.float64), found.astype(np.float64)

    return score


def _data_of(record: Mapping[str, Any], data: str | None, options: Mapping[str, Any]) -> Dataset:
    config = record["config"]
    name = str(config["data"]) if data is None else data
    if "data_sha256" in config and data is None:
        raise DataError(f"the run's data {name!r} were a file: give it by --data, or say --no-auc")
    wanted = RunConfig(data=name, data_options={**config["data_options"], **options})
    dataset = sources.subsample(sources.load(wanted), config["rows"], config["seed"])
    known = record["data"]["fingerprint"]
    if dataset.fingerprint != known:
        raise DataError(
            f"{name!r} is not what the run was trained on: its fingerprint is "
            f"{dataset.fingerprint}, that of the run's data {known}"
        )
    return dataset


def of_factory(
    text: str, weights: Path | None, data: str | None, label: str | None, save: Any
) -> Subject:
    """Make a model by ``package.module:function`` and fill it with weights.

    Args:
        text: the factory; modules in the working directory are found too.
        weights: a safetensors file, or a state dict that ``torch.load(weights_only=True)`` reads.
        data: argument of the module's ``batches``.
        label: its second argument, where it takes one.
        save: writes the converted model.

    Raises:
        ConfigError: there is no such factory, it makes no module, or it has no ``batches``.
        FormatError: the weights are not readable, or are not those of the model.
    """
    module, function = _imported(text)
    model = function()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{text} must return a torch.nn.Module, got {type(model).__name__}")
    if weights is not None:
        _fill(model, weights)
    scorer = None
    if data is not None:
        batches = getattr(module, "batches", None)
        if not callable(batches):
            raise ConfigError(
                f"{text.partition(':')[0]} has no function batches(path), which --data needs"
            )
        arguments = (data,) if label is None else (data, label)
        scorer = _scorer(lambda: batches(*arguments))
    return Subject(model.eval(), None, scorer, save)


def _imported(text: str) -> tuple[Any, Callable[[], Any]]:
    name, _, function = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"cannot import {name!r} of {text!r}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"module {name!r} has no function {function!r}")
    return module, found


def _fill(model: nn.Module, path: Path) -> None:
    state = _read_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FormatError(f"{path} does not hold the model's weights: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FormatError(f"{os.fspath(path)!r} is not a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file raises
        raise FormatError(f"{path} is no readable file of tensors: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(f"{path} is no state dict: it must map names to tensors")
    return dict(state)


def _scorer(batches: Callable[[], Iterable[tuple[Any, Any]]]) -> Scorer:
    def score(model: nn.Module) -> tuple[Floats, Floats]:
        labels, scores = [], []
        with torch.inference_mode():
            for inputs, label in batches():
                found = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
                truth = np.asarray(label, np.float64).reshape(-1)
                scores.append(_flat(found, len(truth)))
                labels.append(truth)
        if not labels:
            raise DataError("batches gave none")
        return np.concatenate(labels), np.concatenate(scores)

    return score


def _flat(found: Any, rows: int) -> Floats:
    """Return the scores of a batch: a tensor ``[B]`` or ``[B, 1]``, or the one in a mapping."""
    if isinstance(found, Mapping):
        fitting = [one for one in found.values() if isinstance(one, Tensor) and one.numel() == rows]
        found = fitting[0] if len(fitting) == 1 else found
    if not isinstance(found, Tensor) or found.numel() != rows:
        what = f"{list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(f"the model must give one score a row, {rows} here; it gave {what}")
    flat: Floats = found.double().reshape(-1).cpu().numpy()
    return flat
