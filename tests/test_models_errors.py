"""Errors, configurations and the registry of the models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import COLUMNS, batch, layer_of
from torch import Tensor, nn

import featemb as fe
from featemb.models import (
    CTRModel,
    ModelConfig,
    ModelContext,
    build,
    config_fields,
    find,
    names,
    register,
)


def plain_net(name: str, numeric: int = 2) -> CTRModel:
    return build(name, embedding=layer_of("equal"), numeric=numeric)


every_model = pytest.mark.parametrize("name", names())


@every_model
def test_numeric_errors(name: str) -> None:
    ids, values = batch()
    net = plain_net(name)
    with pytest.raises(fe.SchemaError, match=r"numeric=2: call net\(ids, numeric\)"):
        net(ids)
    with pytest.raises(fe.SchemaError, match=r"float tensor \[6, 2\], got torch.float32 \[6, 1\]"):
        net(ids, values[:, :1])
    with pytest.raises(fe.SchemaError, match=r"\[6, 2\], got torch.float32 \[1, 2\]"):
        net(ids, values[:1])
    with pytest.raises(fe.SchemaError, match="int64"):
        net(ids, values.long())
    values[4, 1] = float("nan")
    with pytest.raises(fe.SchemaError, match="'price': sample 4 is nan"):
        net(ids, values)
    with pytest.raises(fe.SchemaError, match="without numeric columns"):
        plain_net(name, numeric=0)(ids, values)


def test_numeric_may_be_double() -> None:
    ids, values = batch()
    net = plain_net("deepfm").eval()
    assert torch.equal(net(ids, values.double()), net(ids, values))


def test_numeric_is_taken_from_the_schema() -> None:
    assert build("lr", embedding=layer_of("equal")).numeric == len(COLUMNS)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    layer = layer_of("equal")
    with pytest.raises(fe.ConfigError, match="unknown model 'deepfn'; did you mean 'deepfm'"):
        build("deepfn", embedding=layer)
    with pytest.raises(fe.ConfigError, match="'cross_layer'; did you mean 'cross_layers'"):
        build("dcnv2", embedding=layer, cross_layer=2)
    with pytest.raises(fe.ConfigError, match=r"lr: unknown setting 'hidden'.*Allowed: nothing"):
        build("lr", embedding=layer, hidden=[4])


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("deepfm", {"hidden": 400}, "hidden must be a list of integers >= 1, got 400"),
        ("deepfm", {"hidden": [400, 0]}, "hidden must be a list of integers >= 1"),
        ("widedeep", {"hidden": [True]}, "hidden must be a list of integers >= 1"),
        ("widedeep", {"dropout": 1.0}, "dropout must be a number with 0 <= dropout < 1, got 1.0"),
        ("widedeep", {"dropout": float("nan")}, "dropout must be"),
        ("widedeep", {"dropout": "0.1"}, "dropout must be"),
        ("widedeep", {"batch_norm": 1}, "batch_norm must be True or False, got 1"),
        ("fm", {"project": "yes"}, "project must be True or False, got 'yes'"),
        ("dcnv2", {"cross_layers": 0}, "cross_layers must be an integer >= 1, got 0"),
        ("dcnv2", {"low_rank": 2.0}, "low_rank must be an integer >= 1 or None, got 2.0"),
        ("dcnv2", {"structure": "serial"}, "structure must be one of parallel, stacked"),
        ("dlrm", {"bottom": [-1]}, "bottom must be a list of integers >= 1"),
        ("lr", {"numeric": -1}, "lr: numeric must be an integer >= 0, got -1"),
        ("lr", {"seed": 1.5}, "lr: seed must be an integer >= 0, got 1.5"),
    ],
)
def test_values_out_of_range(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        build(name, embedding=layer_of("equal"), **config)


def test_the_embedding_must_be_a_layer() -> None:
    with pytest.raises(fe.ConfigError, match="got Embedding"):
        build("fm", embedding=nn.Embedding(3, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fm", "deepfm", "dlrm"])
def test_unequal_widths_are_one_clear_error(name: str) -> None:
    rule = rf"{name} needs features of equal width, got 6 \('item'\), 4 \('user'\), 2 \('site'\)"
    with pytest.raises(fe.ConfigError, match=rule + ".*project=True .* width 6"):
        build(name, embedding=layer_of("unequal"))


@pytest.mark.parametrize("name", ["lr", "widedeep", "dcnv2"])
def test_other_models_take_any_widths(name: str) -> None:
    assert build(name, embedding=layer_of("unequal"))(*batch()).shape == (6,)


def test_dlrm_needs_two_vectors() -> None:
    layer = fe.embedding(fe.Schema([fe.Feature("user", 5)]), "full", dim=4)
    with pytest.raises(fe.ConfigError, match="at least two vectors"):
        build("dlrm", embedding=layer)
    assert build("dlrm", embedding=layer, numeric=1)(
        torch.tensor([[1]]).repeat(2, 1), torch.ones(2, 1)
    ).shape == (2,)


@every_model
def test_configs_are_json_and_round_trip(name: str) -> None:
    config = plain_net(name).config
    values = json.loads(json.dumps(config.to_dict()))
    assert find(name).config_class(**values) == config
    assert set(config_fields(name)) == set(values)


def test_a_name_is_registered_once() -> None:
    class Other(CTRModel):
        pass

    with pytest.raises(fe.ConfigError, match="'fm' is registered twice"):
        register("fm")(Other)


def test_a_registered_model_is_built_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featemb.models.registry._REGISTRY", {n: find(n) for n in names()})

    @register("total")
    class Total(CTRModel):
        def __init__(self, context: ModelContext, config: ModelConfig) -> None:
            super().__init__(context, config)

        def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
            return vectors.sum(1)

    assert "total" in names()
    layer = layer_of("equal")
    net = build("total", embedding=layer, numeric=0)
    ids, _ = batch()
    assert torch.equal(net(ids), layer(ids).sum(1))


def test_the_folder_refuses_to_be_a_top_level_package() -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", "import models"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "import featemb.models" in result.stderr
    assert "python" in result.stderr.lower()


@every_model
def test_the_docs_name_every_model_and_setting(name: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    assert f"`{name}`" in text
    for setting in config_fields(name):
        assert f"`{setting}`" in text
