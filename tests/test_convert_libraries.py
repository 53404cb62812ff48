"""`fe.convert` on models of other libraries as they are: DeepCTR-Torch, FuxiCTR, TorchRec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_models
import numpy as np
import pytest
import torch
from torch import nn

import featemb as fe
from featemb.benchmarks.conversion import measure

Scores = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def deepctr_scores(model: Any) -> Scores:
    columns, labels = foreign_models.planted_rows(6000, seed=5)
    found = model.predict(columns, batch_size=512)  # the library's own
    return labels.astype("float64"), found.ravel()


def fuxictr_scores(model: Any) -> Scores:
    _, labels = foreign_models.planted_rows(6000, seed=5)
    return labels.astype("float64"), model.predict(foreign_models.fuxictr_batches(6000, 5))


@pytest.fixture(scope="module")
def deepctr() -> nn.Module:
    return foreign_models.deepctr_deepfm()


@pytest.mark.parametrize("codec", ["int8", "int4", "fp16", "pq(parts=4)", "binary(bits=4)"])
def test_deepfm_of_deepctr_torch(codec: str, deepctr: nn.Module) -> None:
    small = fe.convert(deepctr, codec)
    report = fe.conversion(small)
    assert [one.name for one in report.tables] == [
        f"{where}embedding_dict.{name}"
        for where in ("", "linear_model.")
        for name in ("user", "item", "tags")
    ]
    assert report.before == 4 * 9 * sum(foreign_models.SIZES.values())
    assert report.after < report.before
    found = measure(deepctr_scores, deepctr, small)
    assert found.before["value"] > 0.7
    assert abs(found.difference.value) < {"int8": 5e-4, "fp16": 5e-4}.get(codec, 0.02)


def test_a_budget_for_deepctr_torch(deepctr: nn.Module) -> None:
    small = fe.convert(deepctr, ["int8", "int4", "int2"], ratio=5)
    assert fe.conversion(small).ratio >= 5
    assert abs(measure(deepctr_scores, deepctr, small).difference.value) < 0.02


def test_first_order_tables_alone(deepctr: nn.Module) -> None:
    report = fe.conversion(fe.convert(deepctr, "int8", skip="linear_model.*"))
    assert [one.codec for one in report.tables] == ["int8"] * 3 + [None] * 3


def test_deepctr_torch_saved_and_loaded(deepctr: nn.Module, tmp_path: Path) -> None:
    small = fe.convert(deepctr, "int8")
    path = tmp_path / "small.safetensors"
    fe.save_converted(small, path)
    again = fe.load_converted(path, foreign_models.deepctr_deepfm(epochs=0))
    columns, _ = foreign_models.planted_rows(100)
    inputs = foreign_models.deepctr_input(small, columns)
    assert torch.equal(again(inputs), small(inputs))


@pytest.mark.parametrize("kind", ["deepfm", "dcnv2"])
def test_models_of_fuxictr(kind: str, tmp_path: Path) -> None:
    model = foreign_models.fuxictr_model(kind, tmp_path)
    small = fe.convert(model, "int8")
    names = [one.name for one in fe.conversion(small).tables]
    assert names[:3] == [
        f"embedding_layer.embedding_layer.embedding_layers.{name}"
        for name in ("user", "item", "tags")
    ]
    found = measure(fuxictr_scores, model, small)
    assert found.before["value"] > 0.7
    assert abs(found.difference.value) < 5e-4
    assert small.embedding_layer.embedding_layer.embedding_layers["tags"].padding_idx == 0
    tiny = fe.convert(model, ["int8", "int4", "int2"], ratio=6)
    assert fe.conversion(tiny).ratio >= 6
    assert abs(measure(fuxictr_scores, model, tiny).difference.value) < 0.02


def test_padding_of_fuxictr_keeps_out_of_its_mean(tmp_path: Path) -> None:
    """Its pooling finds padding by looking for vectors of zeros."""
    model = foreign_models.fuxictr_model("dcnv2", tmp_path, epochs=1, rows=500)
    batch = next(foreign_models.fuxictr_batches(8, 3))
    batch["tags"] = torch.tensor([[5, 0, 0, 0]]).expand(8, 4).contiguous()
    once = {**batch, "tags": torch.tensor([[5, 5, 5, 5]]).expand(8, 4).contiguous()}
    for codec in ("int8", "int2(scales=table)", "binary"):
        small = fe.convert(model, codec)
        assert torch.allclose(small(batch)["y_pred"], small(once)["y_pred"], atol=1e-6)


def collection(weighted: bool = False, pooling: str = "SUM") -> Any:
    modules = pytest.importorskip("torchrec.modules.embedding_configs")
    from torchrec import EmbeddingBagCollection

    kind = getattr(modules.PoolingType, pooling)
    return EmbeddingBagCollection(
        tables=[
            modules.EmbeddingBagConfig(
                name=name,
                embedding_dim=dim,
                num_embeddings=rows,
                feature_names=features,
                pooling=kind,
            )
            for name, dim, rows, features in (
                ("t1", 8, 500, ["user"]),
                ("t2", 4, 300, ["item", "last_item"]),
            )
        ],
        is_weighted=weighted,
    )


def keyed(weighted: bool = False) -> Any:
    from torchrec import KeyedJaggedTensor

    values = torch.tensor([1, 499, 7, 0, 299, 3, 3, 12, 5])
    return KeyedJaggedTensor(
        keys=["user", "item", "last_item"],
        values=values,
        lengths=torch.tensor([2, 0, 1, 1, 2, 0, 1, 1, 1]),
        weights=torch.linspace(0.5, 1.5, 9) if weighted else None,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", ["SUM", "MEAN"])
def test_embedding_bag_collections_of_torchrec(weighted: bool, pooling: str) -> None:
    if weighted and pooling == "MEAN":
        pytest.skip("TorchRec weighs sums only")
    model = nn.ModuleDict({"ebc": collection(weighted, pooling)})
    small = fe.convert(model, "int8")
    assert [one.name for one in fe.conversion(small).tables] == [
        "ebc.embedding_bags.t1",
        "ebc.embedding_bags.t2",
    ]
    found, wanted = small["ebc"](keyed(weighted)), model["ebc"](keyed(weighted))
    assert type(found) is type(wanted)
    assert found.keys() == wanted.keys() == ["user", "item", "last_item"]
    assert found.length_per_key() == wanted.length_per_key()
    assert (found.values() - wanted.values()).abs().max() < 0.01
    exact = fe.convert(model, "fp32")["ebc"](keyed(weighted))
    assert torch.allclose(exact.values(), wanted.values(), atol=1e-6)
    bad = keyed(weighted)
    bad._values[0] = 500
    with pytest.raises(fe.IdError, match=r"'ebc.embedding_bags.t1': id 500"):
        small["ebc"](bad)


def test_embedding_collections_of_torchrec(tmp_path: Path) -> None:
    pytest.importorskip("torchrec")
    from torchrec import EmbeddingCollection, EmbeddingConfig

    def build() -> nn.ModuleDict:
        tables = [
            EmbeddingConfig(
                name="t", embedding_dim=8, num_embeddings=500, feature_names=["item", "last_item"]
            )
        ]
        return nn.ModuleDict({"ec": EmbeddingCollection(tables=tables)})

    model = build()
    small = fe.convert(model, "int8")
    found, wanted = small["ec"](keyed()), model["ec"](keyed())
    assert list(found) == list(wanted)
    for name, one in wanted.items():
        assert torch.equal(found[name].lengths(), one.lengths())
        assert (found[name].values() - one.values()).abs().max() < 0.02
    fe.save_converted(small, tmp_path / "ec.safetensors")
    again = fe.load_converted(tmp_path / "ec.safetensors", build())
    assert torch.equal(again["ec"](keyed())["item"].values(), found["item"].values())
