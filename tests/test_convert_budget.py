"""`fe.convert` within a limit of bytes: exact, the best of all choices, or an error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import featemb as fe
from featemb.conversion.choices import Choice, best, ladder


def frontier(rng: np.random.Generator, count: int) -> list[Choice]:
    """Random choices of a table of which none is beaten in both."""
    sizes = np.sort(rng.choice(np.arange(1, 200), count, replace=False))
    errors = np.sort(rng.random(count))[::-1]
    pairs = zip(sizes, errors, strict=True)
    return [Choice(str(i), int(size), float(error)) for i, (size, error) in enumerate(pairs)]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_choices_are_those_of_trying_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices = [frontier(rng, int(count)) for count in rng.integers(1, 6, 5)]
    floor = sum(own[0].bytes for own in choices)
    limit = floor + int(rng.integers(0, 300))
    fitting = [
        every for every in itertools.product(*choices) if sum(one.bytes for one in every) <= limit
    ]
    wanted = min(sum(one.error for one in every) for every in fitting)
    found = best(choices, limit)
    assert sum(one.bytes for one in found) <= limit
    assert sum(one.error for one in found) == pytest.approx(wanted, abs=1e-12)


def test_many_tables_are_chosen_for_at_once() -> None:
    rng = np.random.default_rng(1)
    choices = [
        [Choice(one.codec, one.bytes * int(10 ** rng.uniform(0, 6)), one.error) for one in own]
        for own in (frontier(rng, 8) for _ in range(200))
    ]
    choices = [sorted(own, key=lambda one: one.bytes) for own in choices]
    choices = [monotone(own) for own in choices]
    least, most = (sum(own[at].bytes for own in choices) for at in (0, -1))
    assert sum(one.bytes for one in best(choices, least)) == least
    assert sum(one.bytes for one in best(choices, most)) == most
    half = (least + most) // 2
    assert half * 0.999 < sum(one.bytes for one in best(choices, half)) <= half


def monotone(own: list[Choice]) -> list[Choice]:
    """Keep what is not beaten."""
    kept: list[Choice] = []
    for one in own:
        if not kept or one.error < kept[-1].error:
            kept.append(one)
    return kept


def net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "user": nn.Embedding(6000, 16),
            "item": nn.EmbeddingBag(900, 16),
            "day": nn.Embedding(30, 4),
            "out": nn.Linear(4, 1),
        }
    )


@pytest.mark.parametrize("ratio", [1, 1.5, 2, 16])
def test_a_ratio_is_kept_to_the_byte(ratio: float) -> None:
    model = net()
    report = fe.conversion(fe.convert(model, ratio=ratio))
    before = 4 * (6000 * 16 + 900 * 16 + 30 * 4)
    assert report.before == before
    assert report.after <= before / ratio
    assert report.after > before / ratio * 0.55  # and it is made use of
    assert fe.conversion(fe.convert(model, budget=int(before / ratio))).after == report.after


@torch.no_grad()
def test_more_bytes_are_never_worse() -> None:
    model = net()
    errors = []
    for ratio in (25, 16, 8, 4, 2, 1):
        small = fe.convert(model, ["fp16", "int8", "int4", "int2", "binary"], ratio=ratio)
        error = sum(
            float((small[name].weight - model[name].weight).square().sum(1).mean())
            for name in ("user", "item", "day")
        )
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_tables_that_stay_count_too() -> None:
    model = net()
    with_item = fe.conversion(fe.convert(model, ["int8", "int4"], ratio=3, skip="item"))
    assert with_item.after <= with_item.before / 3
    item = next(one for one in with_item.tables if one.name == "item")
    assert (item.codec, item.after) == (None, 900 * 64)
    with pytest.raises(fe.BudgetError, match="57,600 of them stay") as caught:
        fe.convert(model, budget="57kB", skip="item")
    assert caught.value.floor > 57600


def test_the_floor_of_an_error_can_be_had() -> None:
    model = net()
    with pytest.raises(fe.BudgetError, match="need at least") as caught:
        fe.convert(model, budget="1kB")
    assert caught.value.floor < 6000
    with pytest.raises(fe.BudgetError, match="need at least") as caught:
        fe.convert(model, "binary", budget="1kB")
    floor = caught.value.floor
    assert fe.conversion(fe.convert(model, "binary", budget=floor)).after == floor
    with pytest.raises(fe.BudgetError):
        fe.convert(model, "binary", budget=floor - 1)


def test_candidates_can_be_named() -> None:
    model = net()
    codecs = {
        one.codec for one in fe.conversion(fe.convert(model, ["int8", "int4"], ratio=5)).tables
    }
    assert codecs <= {None, "int8", "int4"}
    found = fe.conversion(fe.convert(model, "binary", ratio=12)).tables
    assert all(one.codec is None or one.codec.startswith("binary") for one in found)
    assert ladder(16, ["svd"])[0] == 'svd(rank=1, inner="int8")'


def test_codebooks_are_tried_where_scalar_formats_are_coarse() -> None:
    """Rows that are few vectors and some noise: codewords suit them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"user": nn.Embedding(3000, 8)})
    with torch.no_grad():
        centres = torch.randn(20, 8)
        model["user"].weight.copy_(centres[torch.randint(0, 20, (3000,))])
    (one,) = fe.conversion(fe.convert(model, ratio=8)).tables
    assert str(one.codec).startswith("pq")


def test_counts_say_which_table_matters() -> None:
    model = nn.ModuleDict({name: nn.Embedding(1000, 16) for name in ("often", "rare")})
    counts = {"often": torch.full((1000,), 1000.0), "rare": torch.ones(1000)}
    report = fe.conversion(fe.convert(model, ["int8", "int4", "int2"], ratio=4, counts=counts))
    sizes = {one.name: one.after for one in report.tables}
    assert sizes["often"] > sizes["rare"]
