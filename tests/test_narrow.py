"""Served layers without the columns that are always zero, and the networks behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import SMALL, VARIANTS
from torch import Tensor, nn

import featemb as fe
from featemb.base import EmbeddingBase
from featemb.models import CTRModel, build, config_fields
from featemb.parts import Lookup, OffsetAddress, Source
from featemb.parts.source import Split

DIM = 4
SINGLE = fe.Schema([fe.Feature("user", 30), fe.Feature("item", 9), fe.Feature("site", 5)], ["age"])
BAGS = fe.Schema(
    [fe.Feature("user", 30), fe.Feature("tags", 9, multi=True, pooling="max"), fe.Feature("site")],
    ["age"],
)
every_variant = pytest.mark.parametrize(("name", "config"), VARIANTS)
every_used = pytest.mark.parametrize("used", [(4, 1, 2), (2, 2, 2), (3, 0, 4), (0, 0, 0)])


class FirstColumns(Source):
    """Hashed rows of which a feature uses its first columns only."""

    rows: nn.Module
    address: nn.Module
    used: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        vectors = self.rows(self.address(ids, feature)).flatten(-2)
        used = torch.tensor(self.used)[feature][..., None]
        return torch.where(torch.arange(DIM) < used, vectors, 0.0)

    def used_widths(self, num_features: int, dim: int) -> tuple[int, ...]:
        return self.used


def frozen_of(used: tuple[int, ...], schema: fe.Schema = SINGLE) -> fe.FrozenEmbedding:
    hashed = fe.embedding(schema, "hash(rows=40)", dim=DIM).freeze().source
    source = FirstColumns(rows=hashed.rows, address=hashed.address, used=used)
    return fe.FrozenEmbedding(schema, DIM, (DIM,) * 3, source).eval()


def inputs_of(schema: fe.Schema) -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(5, (8,), generator=generator) for _ in range(3)]
    numeric = torch.randn(8, 1, generator=generator)
    if schema.single_valued:
        return torch.stack(columns, 1), numeric
    lengths = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1])
    tags = (torch.arange(8) % 9, lengths)
    return {"user": columns[0], "tags": tags, "site": columns[2]}, numeric


def served(
    name: str, config: dict[str, Any], layer: fe.FrozenEmbedding, numeric: int = 1
) -> tuple[CTRModel, CTRModel]:
    """Build a network of random weights; return it frozen around a layer, wide and narrow."""
    fields = config_fields(name)
    settings = {**{k: v for k, v in SMALL.items() if k in fields}, **config}
    schema = layer.schema
    net = build(
        name,
        embedding=fe.embedding(schema, "hash(rows=40)", dim=DIM),
        numeric=numeric,
        **settings,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.7, 0.7, generator=generator)
    net.embedding.freeze = lambda codec=None: layer  # type: ignore[method-assign, assignment]
    return net.freeze(narrow=False), net.freeze()


# ---- layers ----


@every_used
@pytest.mark.parametrize("schema", [SINGLE, BAGS], ids=["single", "bags"])
def test_a_narrowed_layer_gives_the_used_columns(
    used: tuple[int, ...], schema: fe.Schema, tmp_path: Path
) -> None:
    wide = frozen_of(used, schema)
    narrow = wide.narrowed()
    ids, _ = inputs_of(schema)
    columns = wide(ids).view(8, 3, DIM)
    expected = torch.cat([columns[:, f, :width] for f, width in enumerate(used)], 1)
    assert narrow.widths == used
    assert not narrow.training
    assert torch.equal(narrow(ids), expected)
    assert narrow.memory() == wide.memory()
    assert narrow.narrowed() is narrow
    narrow.save(tmp_path / "narrow.st")
    loaded = fe.load(tmp_path / "narrow.st")
    assert loaded.widths == used
    assert torch.equal(loaded(ids), expected)
    assert loaded.narrowed() is loaded


def test_a_layer_that_uses_all_columns_is_itself() -> None:
    for wide in (frozen_of((4, 4, 4)), fe.embedding(SINGLE, "lowdim(width=2)", dim=DIM).freeze()):
        assert wide.narrowed() is wide


def test_a_narrowed_layer_exports() -> None:
    narrow = frozen_of((4, 1, 2)).narrowed()
    ids, _ = inputs_of(SINGLE)
    program = torch.export.export(narrow, (ids,), dynamic_shapes=({0: torch.export.Dim("size")},))
    assert torch.equal(program.module()(ids[:5]), narrow(ids[:5]))


def table(schema: fe.Schema, width: int) -> Lookup:
    rows = fe.embedding(schema, "full", dim=width).freeze().source
    assert isinstance(rows, Lookup)
    return rows


def test_a_split_uses_its_sources_own_widths() -> None:
    first = table(fe.Schema(SINGLE.features[:1]), 4)
    second = FirstColumns(
        rows=table(fe.Schema(SINGLE.features[2:]), 4).rows,
        address=OffsetAddress.of((5,)),
        used=(3,),
    )
    third = table(fe.Schema(SINGLE.features[1:2]), 2)
    split = Split(sources=[first, second, third], which=(0, 2, 1), dim=6)
    outer = fe.FrozenEmbedding(SINGLE, 6, (6,) * 3, split).eval()
    assert split.used_widths(3, 6) == (4, 2, 3)
    narrow = outer.narrowed()
    ids, _ = inputs_of(SINGLE)
    columns = outer(ids).view(8, 3, 6)
    for f, width in enumerate((4, 2, 3)):
        assert not columns[:, f, width:].any()
    assert torch.equal(
        narrow(ids), torch.cat([columns[:, f, :w] for f, w in enumerate((4, 2, 3))], 1)
    )


# ---- networks ----


@every_variant
@every_used
@pytest.mark.parametrize("schema", [SINGLE, BAGS], ids=["single", "bags"])
def test_logits_stay_and_bytes_fall(
    name: str, config: dict[str, Any], used: tuple[int, ...], schema: fe.Schema
) -> None:
    wide, narrow = served(name, config, frozen_of(used, schema))
    ids, numeric = inputs_of(schema)
    torch.testing.assert_close(narrow(ids, numeric), wide(ids, numeric), atol=1e-5, rtol=1e-5)
    assert narrow.memory() == wide.memory()
    assert narrow.embedding.widths == used or name in ("fm", "dlrm")
    if name in ("fm", "dlrm", "lr"):  # they have no weight for a column
        assert narrow.net_bytes() == wide.net_bytes()
    else:
        assert narrow.net_bytes() < wide.net_bytes()
    assert not any(parameter.requires_grad for parameter in narrow.parameters())


@every_variant
def test_without_numeric_columns_nothing_may_be_left(name: str, config: dict[str, Any]) -> None:
    wide, narrow = served(name, config, frozen_of((0, 0, 0)), numeric=0)
    ids, _ = inputs_of(SINGLE)
    torch.testing.assert_close(narrow(ids), wide(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        # 3 cross layers of d x d + d, an MLP of d x 8 + 8, 8 x 6 + 6, 6 + 1, an output of d
        ({}, lambda d: 3 * (d * d + d) + (8 * d + 8) + (48 + 6) + (6 + 1) + d),
        ({"low_rank": 3}, lambda d: 3 * (3 * d + 3 * d + d) + (8 * d + 8) + 54 + 7 + d),
        ({"structure": "stacked"}, lambda d: 3 * (d * d + d) + (8 * d + 8) + 54 + 7),
    ],
)
def test_dcnv2_is_as_large_as_one_built_narrow(config: dict[str, Any], numbers: Any) -> None:
    wide, narrow = served("dcnv2", config, frozen_of((4, 1, 2)))
    assert wide.net_bytes() == 4 * numbers(13)
    assert narrow.net_bytes() == 4 * numbers(8)


def test_projected_widths_are_filled_up_before_the_projection() -> None:
    spec = "unified(lookups=2, rows=50, per_feature={item: 1})"
    net = build("deepfm", embedding=fe.embedding(SINGLE, spec, dim=DIM), hidden=[5], project=True)
    assert isinstance(net.embedding, EmbeddingBase)
    widths = net.embedding.widths
    assert len(set(widths)) == 2
    layer = net.embedding.freeze()

    def cut(ids: Tensor, feature: Tensor) -> Tensor:
        vectors = wide(ids, feature)
        return torch.where(torch.arange(vectors.shape[-1]) < 1, vectors, 0.0)

    wide = layer.source.forward
    layer.source.forward = cut  # type: ignore[method-assign]
    layer.source.used_widths = lambda num, dim: (1,) * num  # type: ignore[method-assign]
    net.embedding.freeze = lambda codec=None: layer  # type: ignore[method-assign, assignment]
    ids, numeric = inputs_of(SINGLE)
    whole, narrow = net.freeze(narrow=False), net.freeze()
    assert narrow.embedding.widths == (1, 1, 1)
    torch.testing.assert_close(narrow(ids, numeric), whole(ids, numeric), atol=1e-5, rtol=1e-5)


@every_variant
def test_a_narrowed_network_exports(name: str, config: dict[str, Any]) -> None:
    narrow = served(name, config, frozen_of((4, 1, 2)))[1]
    inputs = inputs_of(SINGLE)
    size = torch.export.Dim("size", min=2)
    program = torch.export.export(narrow, inputs, dynamic_shapes=({0: size}, {0: size}))
    fewer = tuple(one[:5] for one in inputs)
    torch.testing.assert_close(program.module()(*fewer), narrow(*fewer))


class OwnModel(CTRModel):
    """A model of a user: it knows nothing of narrower layers."""

    name = "own"

    def logits(self, ids: Any, vectors: Tensor, numeric: Tensor | None) -> Tensor:
        return vectors.view(-1, 3, DIM).prod(1).sum(1)


def test_a_model_without_support_keeps_its_layer() -> None:
    from featemb.models.base import ModelContext
    from featemb.models.config import ModelConfig

    layer = frozen_of((4, 1, 2))
    trained = fe.embedding(SINGLE, "full", dim=DIM)
    net = OwnModel(ModelContext(trained, 0, torch.Generator()), ModelConfig())
    trained.freeze = lambda codec=None: layer  # type: ignore[method-assign, assignment]
    frozen = net.freeze()
    assert frozen.embedding is layer
    assert frozen(inputs_of(SINGLE)[0]).shape == (8,)
