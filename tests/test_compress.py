"""Trained tables of any origin, compressed without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import featemb as fe
from featemb.codecs.base import codec_by_name


def table(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("codec", fe.codecs())
def test_every_codec_takes_tables_of_other_frameworks(codec: str, tmp_path: Path) -> None:
    user, item = table(300, 8), table(40, 8, seed=1)
    given = {"user": torch.nn.Embedding.from_pretrained(user).weight, "item": item.numpy()}
    frozen = fe.compress(given, codec)
    rows = frozen(torch.tensor([[299, 0], [7, 39]])).view(2, 2, 8)
    both = torch.cat([user, item])
    bound = codec_by_name(codec).error_bound(both).expand(340, 8)
    for sample, ids in enumerate(((299, 300), (7, 339))):
        for feature, row in enumerate(ids):
            error = (rows[sample, feature] - both[row]).abs()
            assert (error <= bound[row] * 1.0001 + 1e-7).all()
    frozen.save(tmp_path / "tables.safetensors")
    again = fe.load(tmp_path / "tables.safetensors")
    ids = torch.tensor([[5, 6]])
    assert torch.equal(again(ids), frozen(ids))


def test_exact_with_fp32_and_widths_of_their_own() -> None:
    user, item, day = table(30, 4), table(9, 2, seed=1), table(7, 4, seed=2)
    frozen = fe.compress({"user": user, "item": item, "day": day.numpy()}, "fp32")
    assert frozen.widths == (4, 2, 4)
    wanted = torch.cat([user[29], item[3], day[6]])[None]
    assert torch.equal(frozen(torch.tensor([[29, 3, 6]])), wanted)
    assert frozen.memory().serving == 4 * (30 * 4 + 9 * 2 + 7 * 4)


def test_a_schema_orders_pools_and_weighs() -> None:
    counts = np.arange(50, 0, -1)
    schema = fe.Schema(
        [fe.Feature("tags", 50, multi=True, pooling="sum", counts=counts), fe.Feature("day", 3)]
    )
    given = {"day": table(3, 4), "tags": table(50, 4, seed=1)}
    frozen = fe.compress(given, "fp32", schema)
    ids = fe.Jagged(torch.tensor([1, 2, 0]), torch.tensor([2, 1]))
    wanted = torch.cat([given["tags"][1] + given["tags"][2], given["day"][0]])[None]
    assert torch.allclose(frozen(ids), wanted)


@pytest.mark.parametrize(
    ("tables", "schema", "error", "words"),
    [
        ({"a": torch.ones(3)}, None, fe.DataError, ["'a'", "(3,)"]),
        ({"a": torch.ones(3, 2).long()}, None, fe.DataError, ["'a'", "int64"]),
        ({"a": "text"}, None, fe.DataError, ["'a'"]),
        ({"a": torch.ones(0, 2)}, None, fe.DataError, ["'a'", "(0, 2)"]),
        ({"a": torch.tensor([[1.0], [float("nan")]])}, None, fe.DataError, ["row 1", "'a'"]),
        ({"a": torch.tensor([[1e300]]).double() * 1e9}, None, fe.DataError, ["row 0", "'a'"]),
        ({"a": torch.ones(3, 2)}, fe.Schema([fe.Feature("b", 3)]), fe.SchemaError, ["'a'", "'b'"]),
        ({"a": torch.ones(3, 2)}, fe.Schema([fe.Feature("a", 4)]), fe.SchemaError, ["4", "3"]),
        ({}, None, fe.SchemaError, []),
    ],
)
def test_bad_tables_are_named(
    tables: dict[str, object],
    schema: fe.Schema | None,
    error: type[fe.FeatembError],
    words: list[str],
) -> None:
    with pytest.raises(error) as raised:
        fe.compress(tables, "int8", schema)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_unknown_codecs_are_named() -> None:
    with pytest.raises(fe.ConfigError, match="int8"):
        fe.compress({"a": torch.ones(3, 2)}, "int9")
