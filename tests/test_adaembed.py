"""AdaEmbed: its importance and reallocation one id at a time, what it keeps, its bytes."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from public_sizes import SCHEMAS
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.memory import module_bytes
from featemb.parts.kept import KeptRows

PAIR = fe.Schema([fe.Feature("a", 40), fe.Feature("b", 12)])
BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
DIM = 4


@dataclass
class Plain:
    """The method in plain Python: rows are dictionaries of lists, ids are counted over features."""

    total: int
    owners: list[int]
    every: int
    decay: float
    margin: float
    share: float
    scores: list[float] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.scores = [0.0] * self.total
        self.kept = len(self.owners)

    def step(self, read: list[tuple[int, list[float]]]) -> list[tuple[int, int]]:
        """Count a step's lookups (id, gradient); return the pairs (left, entered)."""
        sums: dict[int, list[float]] = {}
        counts: dict[int, int] = {}
        for number, grad in read:
            before = sums.get(number, [0.0] * len(grad))
            sums[number] = [x + y for x, y in zip(before, grad, strict=True)]
            counts[number] = counts.get(number, 0) + 1
        norms = {number: math.sqrt(sum(x * x for x in one)) for number, one in sums.items()}
        unit = sum(counts[number] * norms[number] for number in sums) / len(read)
        for number in sums:
            self.scores[number] += counts[number] * norms[number] / unit
        self.steps += 1
        if self.steps % self.every:
            return []
        pairs = self.reallocate()
        self.scores = [score * self.decay for score in self.scores]
        return pairs

    def reallocate(self) -> list[tuple[int, int]]:
        others = [number for number in range(self.total) if number not in self.owners]
        most = min(max(1, int(self.share * self.kept)), len(others))
        best = sorted(others, key=lambda number: (-self.scores[number], number))[:most]
        worst = sorted(self.owners, key=lambda number: (self.scores[number], -number))[:most]
        pairs = []
        for entered, left in zip(best, worst, strict=True):
            if self.scores[entered] > (1 + self.margin) * self.scores[left]:
                self.owners[self.owners.index(left)] = entered
                pairs.append((left, entered))
        return pairs


def owners(layer: Any) -> list[int]:
    return (layer.owned.pointers >= 0).nonzero()[:, 0].tolist()


def draw(seed: int, size: int = 24, schema: fe.Schema = PAIR) -> Tensor:
    """Ids ``[B, F]``, small ones more often."""
    source = torch.Generator().manual_seed(seed)
    columns = [
        (torch.rand(size, generator=source).square() * n).long() for n in schema.cardinalities
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("optimizer", [optim.RowSGD, torch.optim.SGD, optim.RowAdam])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_owners_scores_and_rows_are_those_of_the_plain_method(optimizer: Any, share: float) -> None:
    spec = f"adaembed(kept=15, every=3, decay=0.8, margin=0.1, share={share})"
    layer: Any = fe.embedding(PAIR, spec, dim=DIM)
    first = owners(layer)
    plain = Plain(52, first, 3, 0.8, 0.1, share)
    opt = optimizer(layer.parameters(), lr=0.05)
    source = torch.Generator().manual_seed(1)
    passed = 0
    for step in range(1, 31):
        ids = draw(step)
        numbers = ids + torch.tensor([0, 40])
        rows = copy.deepcopy(layer.owned.pointers)
        reads = layer(ids)
        weights = torch.randn(reads.shape, generator=source)
        opt.zero_grad()
        ((reads + 0.3).square() * weights).sum().backward()
        grads = (2 * (reads.detach() + 0.3) * weights).view(-1, DIM)
        layer.after_backward()
        opt.step()
        trained = layer.owned.rows.weight.detach().clone()
        layer.after_step(step)
        pairs = plain.step(list(zip(numbers.reshape(-1).tolist(), grads.tolist(), strict=True)))
        passed += len(pairs)
        assert sorted(plain.owners) == owners(layer)
        torch.testing.assert_close(layer.scores, torch.tensor(plain.scores), atol=1e-4, rtol=1e-4)
        expected = trained
        for left, entered in pairs:
            assert layer.owned.pointers[entered] == rows[left]
            expected[rows[left]] = 0
            state = opt.state.get(layer.owned.rows.weight, {})
            for name in ("exp_avg", "exp_avg_sq"):
                assert not state[name][rows[left]].any() if name in state else True
        assert torch.equal(layer.owned.rows.weight, expected)
    assert passed > 5


def test_ids_without_a_row_read_zeros_and_leave_every_row_alone() -> None:
    layer: Any = fe.embedding(PAIR, "adaembed(kept=5, every=1000)", dim=DIM)
    opt = optim.RowAdam(layer.parameters(), lr=0.1)
    without = [n for n in range(40) if layer.owned.pointers[n] < 0]
    poor = [n for n in range(12) if layer.owned.pointers[40 + n] < 0]
    rich = torch.tensor([[0, poor[0]]])
    other = torch.tensor([[without[0], poor[0]]])
    layer(rich).sum().backward()
    opt.step()
    before = layer.owned.rows.weight.detach().clone()
    opt.zero_grad()
    out = layer(other)
    assert not out.any()
    out.sum().backward()
    opt.step()  # Adam's moments would move row 0 if it were taken for read
    assert torch.equal(layer.owned.rows.weight, before)
    layer.after_step(1)
    assert layer.scores[without[0]] > 0
    assert layer.eval()(rich).any()
    assert not layer(other).any()


class Planted(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.layer(ids).sum(1)
        return logits


def train(model: Any, opt: Any, chances: Tensor, effects: Tensor, steps: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(1, steps + 1):
        ids = torch.multinomial(chances, 256, replacement=True, generator=source)
        label = (torch.rand(256, generator=source) < torch.sigmoid(effects[ids])).float()
        loss = nn.functional.binary_cross_entropy_with_logits(model(ids[:, None]), label)
        opt.zero_grad()
        loss.backward()
        opt.step()
        model.layer.after_step(step)


@pytest.mark.parametrize("optimizer", [optim.RowAdam, optim.DenseAdam])
def test_rows_go_to_the_ids_that_carry_signal(optimizer: Any) -> None:
    """All ids occur equally often; every fifth decides the label. Ids 0 to 39 own rows at first."""
    total, kept = 200, 40
    effects = torch.where(torch.arange(total) % 5 == 0, 4.0, 0.0)
    schema = fe.Schema([fe.Feature("x", total)])
    layer: Any = fe.embedding(schema, f"adaembed(kept={kept}, every=20)", dim=DIM)
    assert owners(layer) == list(range(kept))
    model = Planted(layer)
    entered: set[int] = set()
    opt = optimizer(layer.parameters(), lr=0.002)
    for seed in range(5):
        train(model, opt, torch.ones(total), effects, 40, seed)
        entered |= {n for n in owners(layer) if n >= kept}
    signal = {n for n in range(kept, total) if n % 5 == 0}
    assert len(entered & signal) > 0.9 * len(signal)
    assert len(owners(layer)) == kept
    assert sum(n % 5 == 0 for n in owners(layer)) > 0.7 * kept


def test_owners_follow_a_shift_of_popularity() -> None:
    total, kept = 200, 40
    schema = fe.Schema([fe.Feature("x", total)])
    layer: Any = fe.embedding(schema, f"adaembed(kept={kept}, every=10, decay=0.7)", dim=DIM)
    model, opt = Planted(layer), optim.RowAdam(layer.parameters(), lr=0.002)
    effects = torch.randn(total, generator=torch.Generator().manual_seed(0))
    for hot in (slice(100, 140), slice(20, 60), slice(150, 190)):
        chances = torch.full((total,), 0.05)
        chances[hot] = 1.0
        train(model, opt, chances, effects, 300, hot.start)
        wanted = set(range(total)[hot])
        assert len(wanted & set(owners(layer))) >= 0.9 * kept


def test_a_clear_lead_is_needed() -> None:
    layer: Any = fe.embedding(PAIR, "adaembed(kept=4, every=1, margin=0.5, share=1.0)", dim=DIM)
    before = owners(layer)
    layer.scores[before] = 10.0
    rest = [n for n in range(52) if n not in before]
    layer.scores[rest[0]], layer.scores[rest[1]] = 15.0, 15.1
    layer.after_step(1)
    assert set(owners(layer)) - set(before) == {rest[1]}
    assert layer.scores[rest[1]] == pytest.approx(15.1 * 0.9)


def test_at_most_a_share_of_the_rows_moves_at_once() -> None:
    layer: Any = fe.embedding(PAIR, "adaembed(kept=20, every=1, share=0.25)", dim=DIM)
    before = set(owners(layer))
    layer.scores[[n for n in range(52) if n not in before]] = 1.0
    for step in range(1, 5):
        layer.after_step(step)
        assert len(before & set(owners(layer))) == 20 - 5 * step


def test_the_unit_takes_the_scale_of_the_loss_away() -> None:
    found = []
    for scale in (1.0, 2.0**10, float("inf")):
        layer: Any = fe.embedding(PAIR, "adaembed(kept=15)", dim=DIM)
        (layer(draw(0)).square().sum() * scale).backward()
        layer.after_step(1)
        found.append(layer.scores)
    assert torch.allclose(found[0], found[1])
    assert float(found[0].sum()) == pytest.approx(48)
    assert torch.isfinite(found[2]).all()


def test_several_backward_passes_make_one_step() -> None:
    layer: Any = fe.embedding(PAIR, "adaembed(kept=15, score=frequency)", dim=DIM)
    for seed in (0, 1):
        layer(draw(seed)).sum().backward()
    layer.eval()(draw(2))
    with torch.no_grad():
        layer.train()(draw(3))
    layer.after_step(1)
    both = torch.cat([draw(0), draw(1)]) + torch.tensor([0, 40])
    assert torch.equal(layer.scores, both.reshape(-1).bincount(minlength=52).float())


def test_bags_are_counted_by_lookup() -> None:
    schema = fe.Schema([fe.Feature("a", 9), fe.Feature("t", 6, multi=True, pooling="mean")])
    layer: Any = fe.embedding(schema, "adaembed(kept=4, score=frequency)", dim=DIM)
    bags = fe.Jagged(torch.tensor([1, 2, 5, 5, 0]), torch.tensor([1, 1, 3, 0]))
    layer(bags).sum().backward()
    layer.after_step(1)
    assert layer.scores.nonzero()[:, 0].tolist() == [1, 2, 9, 14]
    assert layer.scores[14] == 2


def test_rows_start_with_the_most_frequent_ids() -> None:
    counts = {"a": torch.arange(40).numpy(), "b": torch.full((12,), 38).numpy()}
    layer: Any = fe.embedding(PAIR, "adaembed(kept=10)", dim=DIM, counts=counts)
    assert owners(layer) == [38, 39, *range(40, 48)]
    assert layer.owned.pointers[owners(layer)].tolist() == list(range(10))
    plain: Any = fe.embedding(PAIR, "adaembed(kept=6)", dim=DIM)
    hot = fe.frequency.hot_sizes(PAIR, 6)
    assert owners(plain) == [*range(hot[0]), *(40 + n for n in range(hot[1]))]


def test_what_is_served() -> None:
    layer: Any = fe.embedding(PAIR, "adaembed(kept=15, every=1, share=0.5)", dim=DIM)
    opt = optim.RowAdam(layer.parameters(), lr=0.05)
    for step in range(1, 9):
        opt.zero_grad()
        layer(draw(step)).sum().backward()
        opt.step()
        layer.after_step(step)
    frozen = layer.freeze()
    assert isinstance(frozen.source.rows, KeptRows)
    every = torch.tensor([[a, b] for a in range(40) for b in range(12)])
    assert torch.equal(frozen(every), layer.eval()(every))
    assert (layer(every)[:, :DIM] != 0).any(1).sum() > 0
    whole: Any = fe.embedding(PAIR, "adaembed(kept=1000)", dim=DIM)
    assert whole.memory().serving == 52 * DIM * 4
    assert torch.equal(whole.eval()(every), whole.freeze()(every))
    whole.train().after_step(100)


@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
def test_bytes_are_within_a_row_of_the_budget(ratio: int) -> None:
    limit = BIG.full_bytes(16) // ratio
    layer = fe.embedding(BIG, "adaembed", dim=16, ratio=ratio)
    memory = layer.memory()
    assert limit - 4 * 17 < memory.serving <= limit
    kept = layer.config.kept  # type: ignore[attr-defined]
    assert memory.training == 4 * 16 * kept + 8 * sum(BIG.cardinalities) + 8
    assert memory.training_parts["rows"] == 4 * 16 * kept
    assert sum(module_bytes(layer.freeze()).values()) == memory.serving


def test_public_sizes_are_solved_at_once() -> None:
    schema = SCHEMAS["criteo"]
    began = time.process_time()
    layer = fe.embedding(schema, "adaembed", dim=16, ratio=100, device="meta")
    assert time.process_time() - began < 2
    limit = schema.full_bytes(16) // 100
    assert limit - 4 * 17 < layer.memory().serving <= limit


@pytest.mark.parametrize(
    "setting", ["every=0", "decay=0.0", "decay=1.5", "margin=-0.1", "share=0.0", "share=2.0"]
)
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(fe.ConfigError, match=setting.split("=")[0]):
        fe.embedding(PAIR, f"adaembed({setting})")
