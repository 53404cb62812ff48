"""The stand-in for TorchRec's EmbeddingBagCollection: same answers, same updated rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.torchrec import FeatureEmbeddingBagCollection, replace_collections

pytest.importorskip("torchrec")
pytest.importorskip("fbgemm_gpu")

from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

SIZES = {"a": 50, "b": 7, "c": 300}


def tables(mean: bool = True) -> list[Any]:
    """Three tables of two widths; `a` has two features, `z` is embedded by two tables."""
    mean_or_sum = PoolingType.MEAN if mean else PoolingType.SUM
    return [
        EmbeddingBagConfig(name="a", embedding_dim=8, num_embeddings=50, feature_names=["x", "z"]),
        EmbeddingBagConfig(
            name="b", embedding_dim=4, num_embeddings=7, feature_names=["y"], pooling=mean_or_sum
        ),
        EmbeddingBagConfig(name="c", embedding_dim=8, num_embeddings=300, feature_names=["z"]),
    ]


def features(batch: int = 6, seed: int = 0, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to 3 ids, in another order than the tables', with a key that no table has."""
    generator = torch.Generator().manual_seed(seed)
    highest = {"other": 9, "z": 50, "y": 7, "x": 50}
    lengths = torch.randint(0, 4, (len(highest), batch), generator=generator)
    values = [
        torch.randint(0, high, (int(own.sum()),), generator=generator)
        for own, high in zip(lengths, highest.values(), strict=True)
    ]
    weights = torch.rand(int(lengths.sum()), generator=generator) if weighted else None
    return KeyedJaggedTensor(
        keys=list(highest), values=torch.cat(values), lengths=lengths.view(-1), weights=weights
    )


def rows_of(stand_in: FeatureEmbeddingBagCollection) -> dict[str, Tensor]:
    wide, narrow = (layer.source.rows.weight for layer in stand_in.layers)
    return {"a": wide[:50], "c": wide[50:], "b": narrow}


@pytest.mark.parametrize("weighted", [False, True])
def test_answers_are_those_of_the_collection(weighted: bool) -> None:
    theirs = EmbeddingBagCollection(tables=tables(mean=not weighted), is_weighted=weighted)
    ours = FeatureEmbeddingBagCollection.of(theirs)
    for seed in range(3):
        asked = features(seed=seed, weighted=weighted)
        wanted, found = theirs(asked), ours(asked)
        assert found.keys() == wanted.keys() == ["x", "z@a", "y", "z@c"]
        assert found.length_per_key() == wanted.length_per_key() == [8, 8, 4, 8]
        assert torch.allclose(found.values(), wanted.values(), atol=1e-6)
        assert torch.equal(found["y"], found.to_dict()["y"])
    assert (asked.lengths() == 0).any()  # empty bags were among them


def test_batch_sizes_of_their_own() -> None:
    theirs = EmbeddingBagCollection(tables=tables())
    ours = FeatureEmbeddingBagCollection.of(theirs)
    lengths = torch.tensor([1, 2, 1, 2, 0, 3])
    values = torch.tensor([4, 1, 2, 49, 0, 6, 0, 0, 3])
    strides = [[2], [1], [3]]
    inverse = (["x", "z", "y"], torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [2, 1, 0, 2]]))
    asked = KeyedJaggedTensor(
        keys=["x", "z", "y"],
        values=values,
        lengths=lengths,
        stride_per_key_per_rank=strides,
        inverse_indices=inverse,
    )
    assert asked.variable_stride_per_key()
    wanted, found = theirs(asked), ours(asked)
    assert found.values().shape == (4, 28)
    assert torch.allclose(found.values(), wanted.values(), atol=1e-6)
    bare = KeyedJaggedTensor(
        keys=["x", "z", "y"], values=values, lengths=lengths, stride_per_key_per_rank=strides
    )
    with pytest.raises(fe.SchemaError, match="inverse indices"):
        ours(bare)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, weighted: bool) -> None:
    for seed in range(10):
        optimizer.zero_grad()
        model(features(12, seed, weighted)).values().square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise", "adam"])
def test_ten_steps_leave_the_same_rows(name: str, weighted: bool) -> None:
    theirs = EmbeddingBagCollection(tables=tables(mean=not weighted), is_weighted=weighted)
    ours = FeatureEmbeddingBagCollection.of(theirs)
    before = rows_of(ours)["a"].detach().clone()
    pairs = {
        "sgd": (torch.optim.SGD, {"lr": 0.1}, fe.optim.RowSGD, {"lr": 0.1}),
        "adagrad": (torch.optim.Adagrad, {"lr": 0.1}, fe.optim.RowAdagrad, {"lr": 0.1}),
        "rowwise": (
            RowWiseAdagrad,
            {"lr": 0.1, "eps": 1e-8},
            fe.optim.RowAdagrad,
            {"lr": 0.1, "eps": 1e-8, "rowwise": True},
        ),
        "adam": (torch.optim.Adam, {"lr": 0.1}, fe.optim.DenseAdam, {"lr": 0.1}),
    }
    make_theirs, settings, make_ours, own = pairs[name]
    _steps(theirs, make_theirs(theirs.parameters(), **settings), weighted)
    _steps(ours, make_ours(ours.parameters(), **own), weighted)
    for table, rows in rows_of(ours).items():
        assert torch.allclose(rows, theirs.embedding_bags[table].weight, atol=1e-5), table
    assert (rows_of(ours)["a"] - before).abs().max() > 0.01


def test_dlrm_takes_it_in_one_line() -> None:
    def dlrm(collection: nn.Module) -> DLRM:
        torch.manual_seed(0)
        return DLRM(collection, 3, [6, 8], [5, 1])

    same = [
        EmbeddingBagConfig(name=f"t{n}", embedding_dim=8, num_embeddings=high, feature_names=[f])
        for n, (f, high) in enumerate({"x": 50, "y": 7}.items())
    ]
    theirs = EmbeddingBagCollection(tables=same)
    whole = dlrm(theirs)
    ours = dlrm(FeatureEmbeddingBagCollection.of(theirs))
    dense, sparse = torch.randn(6, 3), features()
    assert torch.allclose(ours(dense, sparse), whole(dense, sparse), atol=1e-6)
    small = dlrm(FeatureEmbeddingBagCollection(same, "unified(lookups=2)", ratio=4))
    optimizers = fe.optim.build(small, lr=0.05)
    label = torch.tensor([0.0, 1, 1, 0, 1, 0])
    losses = []
    for _ in range(30):
        logits = small(dense, sparse)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, label)
        small.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_a_built_model_is_converted_in_place() -> None:
    theirs = EmbeddingBagCollection(tables=tables())
    model = nn.ModuleDict({"sparse": nn.Sequential(theirs), "again": theirs})
    wanted = theirs(features()).values()
    same, paths = replace_collections(model)
    assert same is model
    assert sorted(paths) == ["again", "sparse.0"]
    assert model["again"] is model["sparse"][0]
    assert torch.allclose(model["again"](features()).values(), wanted, atol=1e-6)
    with pytest.raises(fe.ConfigError, match="holds no EmbeddingBagCollection"):
        replace_collections(nn.Linear(2, 2))
    alone, paths = replace_collections(theirs, "hash", ratio=2)
    assert isinstance(alone, FeatureEmbeddingBagCollection)
    assert paths == [""]


def test_convert_does_it_too() -> None:
    model = nn.Sequential(EmbeddingBagCollection(tables=tables()))
    made = fe.convert(model, method="unified(lookups=2)", ratio=4)
    assert isinstance(made[0], FeatureEmbeddingBagCollection)
    assert isinstance(model[0], EmbeddingBagCollection)
    assert any(parameter.requires_grad for parameter in made.parameters())
    assert fe.convert(model, method="full", inplace=True) is model
    assert isinstance(model[0], FeatureEmbeddingBagCollection)
    with pytest.raises(fe.ConfigError, match="ratio, budget and inplace alone"):
        fe.convert(model, "int8", method="full")
    coded = fe.convert(model, "int8")
    difference = coded(features()).values() - model(features()).values()
    assert difference.abs().max() < 1e-2


@pytest.mark.parametrize("method", ["unified(lookups=2)", "qr", "mde", "frequency+int8"])
def test_sizes_are_met_and_frozen_answers_the_same(method: str) -> None:
    ours = FeatureEmbeddingBagCollection(tables(), method, budget="6KB").eval()
    served = ours.freeze()
    assert sum(layer.memory().serving for layer in ours.layers) <= 6000
    assert not list(served.parameters())
    wanted, found = ours(features()), served(features())
    assert found.keys() == wanted.keys()
    bound = 1e-2 if "int8" in method else 0.0
    assert (found.values() - wanted.values()).abs().max() <= bound


def test_no_ids_at_all_give_zeros() -> None:
    ours = FeatureEmbeddingBagCollection(tables(), "unified", ratio=2)
    nothing = KeyedJaggedTensor(
        keys=["x", "y", "z"],
        values=torch.zeros(0, dtype=torch.int64),
        lengths=torch.zeros(6, dtype=torch.int64),
    )
    assert torch.equal(ours(nothing).values(), torch.zeros(2, 28))


def test_wrong_input_is_refused() -> None:
    ours = FeatureEmbeddingBagCollection(tables())
    asked = KeyedJaggedTensor(
        keys=["x", "y", "z"], values=torch.tensor([3, 7, 1]), lengths=torch.ones(3).long()
    )
    with pytest.raises(fe.IdError, match=r"'y': id 7 .*'b' \(0 <= id < 7\)"):
        ours(asked)
    with pytest.raises(fe.SchemaError, match="'y' is missing"):
        ours(KeyedJaggedTensor(["x", "z"], torch.tensor([3, 1]), lengths=torch.ones(2).long()))
    weighted = FeatureEmbeddingBagCollection(tables(mean=False), is_weighted=True)
    with pytest.raises(fe.SchemaError, match="'x' has no weights"):
        weighted(features())
    with pytest.raises(fe.ConfigError, match="'b': weighted bags"):
        FeatureEmbeddingBagCollection(tables(), is_weighted=True)
    with pytest.raises(fe.ConfigError, match="'a' appears twice"):
        FeatureEmbeddingBagCollection([*tables(), tables()[0]])
    with pytest.raises(fe.ConfigError, match="no tables"):
        FeatureEmbeddingBagCollection([])
    with pytest.raises(fe.BudgetError) as told:
        FeatureEmbeddingBagCollection(tables(), "qr", budget=100)
    assert told.value.floor > 100
    with pytest.raises(fe.ConfigError, match="got Linear"):
        FeatureEmbeddingBagCollection.of(nn.Linear(2, 2))
    with pytest.raises(fe.ConfigError, match="width"):
        FeatureEmbeddingBagCollection(tables(), "unified(allot=auto, lookups=4)")
