"""OptEmbed: the paper's equations step by step, its search, its budget and its served form."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_methods import plain_mix
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

import featemb as fe
from featemb import staging
from featemb.check.case import LinearReader, TaskBatch
from featemb.memory import module_bytes
from featemb.parts.kept import KeptRows
from featemb.parts.supernet import BinaryStep
from featemb.ragged import RowOrder, fit_rows

SMALL = fe.Schema([fe.Feature("a", 30), fe.Feature("b", 12), fe.Feature("c", 5)])
BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
DIM = 4


def batches(count: int, size: int = 64, schema: fe.Schema = SMALL) -> list[TaskBatch]:
    made = []
    for number in range(count):
        source = torch.Generator().manual_seed(number)
        ids = torch.stack(
            [torch.randint(n, (size,), generator=source) for n in schema.cardinalities], 1
        )
        chance = 0.1 + 0.5 * (ids[:, 0] % 2) + 0.3 * (ids[:, 1] % 3 == 0)
        label = (torch.rand(size, generator=source) < chance).float()
        made.append(TaskBatch(ids, None, label))
    return made


class PlainStep(torch.autograd.Function):
    """The step with the slope of the paper, one number at a time."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.tensor([float(one > 0) for one in z.reshape(-1)]).view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slopes = []
        for one in ctx.saved_tensors[0].reshape(-1).tolist():
            slopes.append(2 - 4 * abs(one) if abs(one) <= 0.4 else 0.4 if abs(one) <= 1 else 0.0)
        return grad * torch.tensor(slopes).view_as(grad)


def test_the_surrogate_slope_is_that_of_the_paper() -> None:
    z = torch.tensor([-3.0, -1.0, -0.7, -0.4, -0.1, 0.0, 0.2, 0.4, 0.9, 1.0, 1.1])
    ours, plain = z.clone().requires_grad_(), z.clone().requires_grad_()
    BinaryStep.apply(ours).sum().backward()
    PlainStep.apply(plain).sum().backward()
    assert torch.allclose(ours.grad, plain.grad)
    assert torch.equal(BinaryStep.apply(z), (z > 0).float())


def plain_widths(seed: int, draw: int, count: int, dim: int) -> list[int]:
    """The width that each looked-up id of a batch draws."""
    mask = (1 << 64) - 1
    salt = plain_mix((seed + plain_mix(draw)) & mask)
    return [(plain_mix((n + salt) & mask) & ((1 << 63) - 1)) % dim + 1 for n in range(count)]


def test_faithful_follows_the_papers_equations_for_200_steps() -> None:
    alpha, threshold_lr, lr, decay = 0.02, 0.05, 0.01, 1e-3
    spec = f"optembed(mode=faithful, alpha={alpha}, threshold_lr={threshold_lr}, init=0.3)"
    layer = fe.embedding(SMALL, spec, dim=DIM, seed=3)
    model = LinearReader(layer)
    table = nn.Parameter(layer.net.rows.weight.detach().clone())
    reader = nn.Parameter(model.weight.detach().clone())
    t = nn.Parameter(torch.zeros(3, 1))
    plain = torch.optim.Adam([table, reader], lr=lr, weight_decay=decay)
    plain_t = torch.optim.SGD([t], lr=threshold_lr)

    staging.begin(model, layer.stages()[0])
    # whatever optimizer the run has: the table must get dense Adam
    ours = fe.optim.build(model, lr, "row_adam", decay, decay, stage=layer.stages()[0])
    offsets = torch.tensor([0, 30, 42])
    pruned = 0
    for number, batch in enumerate(batches(200)):
        loss = bce(model(batch.ids), batch.label)
        model.zero_grad()
        (loss + layer.penalty()).backward()
        layer.after_backward()
        for optimizer in ours:
            optimizer.step()
        layer.after_step(number + 1)

        vectors = table[batch.ids + offsets]
        z = vectors.abs().sum(-1) - t[:, 0]
        rows = PlainStep.apply(z)
        widths = torch.tensor(plain_widths(3, number, batch.ids.numel(), DIM)).view(-1, 3, 1)
        masked = vectors * rows[..., None] * (torch.arange(DIM) < widths)
        plain_loss = bce(masked.flatten(1) @ reader, batch.label)
        plain.zero_grad()
        plain_t.zero_grad()
        (plain_loss + alpha * torch.exp(-t).sum()).backward()
        plain.step()
        plain_t.step()

        assert torch.allclose(loss, plain_loss, atol=2e-5), number
        assert torch.allclose(layer.net.thresholds.weight, t, atol=2e-5), number
        assert torch.allclose(layer.net.rows.weight, table, atol=1e-4), number
        if (table.abs().sum(1) - t[_feature_of(), 0]).abs().min() > 1e-4:
            assert torch.equal(layer.net.scores(SMALL.cardinalities) > 0, _mask(table, t))
        pruned += int((~_mask(table, t)).sum())
    assert pruned > 0, "no row was ever pruned: the test shows nothing"
    assert t.abs().min() > 0.01


def _feature_of() -> Tensor:
    return torch.tensor([0] * 30 + [1] * 12 + [2] * 5)


def _mask(table: Tensor, t: Tensor) -> Tensor:
    return table.abs().sum(1) - t[_feature_of(), 0] > 0


def test_faithful_serves_the_rows_above_their_thresholds() -> None:
    layer = fe.embedding(SMALL, "optembed(mode=faithful, prune=rows)", dim=DIM, seed=1)
    with torch.no_grad():
        layer.net.thresholds.weight.copy_(torch.tensor([[0.55], [0.0], [5.0]]))
    norms = layer.net.rows.weight.detach().abs().sum(1)
    wanted = norms > torch.tensor([0.55, 0.0, 5.0])[_feature_of()]
    staging.search(layer, layer.stages()[1], lambda: 0.0)
    assert torch.equal(layer.net.keep, wanted)
    assert layer.memory().serving < SMALL.full_bytes(DIM)
    assert layer.net.widths.tolist() == [DIM] * 3


def test_retraining_starts_where_the_first_stage_did() -> None:
    layer = fe.embedding(SMALL, "optembed(generations=1, retrain=rewind)", dim=DIM, ratio=2, seed=5)
    model = LinearReader(layer)
    start = copy.deepcopy(model.state_dict())
    first, search, again = layer.stages()
    staging.begin(model, first, start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    staging.search(model, search, lambda: 0.0)
    keep, widths = layer.net.keep.clone(), layer.net.widths.clone()
    assert not keep.all()
    staging.begin(model, again, start)
    assert torch.equal(layer.net.keep, keep)
    assert torch.equal(layer.net.widths, widths)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]), name


def test_thresholds_stay_between_zero_and_the_largest_norm() -> None:
    for force, low, high in ((-50.0, 0.0, 0.0), (50.0, 0.05, 0.5)):
        layer = fe.embedding(SMALL, "optembed(threshold_lr=1.0, init=0.1)", dim=DIM)
        model = LinearReader(layer)
        staging.begin(model, layer.stages()[0])
        model(batches(1)[0].ids).sum().backward()
        with torch.no_grad():
            layer.net.thresholds.weight.fill_(force)
        layer.after_step(1)
        thresholds = layer.net.thresholds.weight
        assert (thresholds >= low).all(), force
        assert (thresholds <= high).all(), force


@pytest.mark.parametrize("codec", ["", "+int8", "+int4"])
@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
def test_it_ends_within_a_row_of_its_budget(ratio: int, codec: str) -> None:
    layer = fe.embedding(BIG, "optembed(generations=2)" + codec, dim=16, ratio=ratio, seed=2)
    whole = sum(module_bytes(fe.embedding(BIG, "full" + codec, dim=16).freeze()).values())
    limit = min(whole, BIG.full_bytes(16) / ratio)
    row = 4 * 16 + 4
    assert limit - row <= layer.memory().serving <= limit
    draw = iter(range(10_000))
    staging.search(layer, layer.stages()[1], lambda: float(next(draw) * 7919 % 101))
    frozen = layer.freeze()
    held = sum(module_bytes(frozen).values())
    assert limit - row <= held <= limit
    assert held == layer.memory().serving


def test_a_budget_below_its_floor_is_refused_with_the_floor() -> None:
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(BIG, "optembed", dim=16, budget=20)
    floor = caught.value.floor
    layer = fe.embedding(BIG, "optembed", dim=16, budget=floor)
    assert layer.memory().serving <= floor
    with pytest.raises(fe.BudgetError):
        fe.embedding(BIG, "optembed", dim=16, budget=floor - 1)
    with pytest.raises(fe.BudgetError):
        fe.embedding(BIG, "optembed(mode=faithful)", dim=16, ratio=10)


def test_the_served_tables_are_physically_small() -> None:
    layer = fe.embedding(BIG, "optembed", dim=16, ratio=10, seed=2)
    kept = torch.zeros(sum(BIG.cardinalities), dtype=torch.bool)
    for start, count in ((0, 900), (20_000, 300), (23_000, 50), (23_050, 7)):
        kept[start : start + count] = True
    layer.stage = "search"
    layer._set(kept, (3, 5, 16, 16))
    frozen = layer.freeze()
    shapes = [tuple(b.shape) for name, b in frozen.named_buffers() if name.endswith("weight")]
    assert sorted(shapes) == [(57, 16), (300, 5), (900, 3)]
    index = [m for m in frozen.modules() if isinstance(m, KeptRows)]
    remap = sum(sum(module_bytes(one.index).values()) for one in index)
    assert 0 < remap < 0.25 * sum(BIG.cardinalities)  # never 4 bytes an id
    ids = torch.tensor([[899, 299, 49, 6], [900, 300, 0, 0]])
    layer.eval()
    assert torch.equal(frozen(ids), layer(ids))
    out = frozen(ids).view(2, 4, 16)
    assert not out[1, :2].any()
    assert out[0, 0, :3].all()
    assert not out[0, 0, 3:].any()


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int4", "int2"])
def test_the_sizes_of_a_search_are_real_bytes(codec: str) -> None:
    layer = fe.embedding(BIG, f"optembed(generations=1)+{codec}", dim=16, ratio=3, seed=0)
    source = torch.Generator().manual_seed(4)
    layer.stage = "search"
    for _ in range(5):
        widths = torch.randint(1, 17, (4,), generator=source).tolist()
        share = float(torch.rand((), generator=source))
        keep = torch.rand(sum(BIG.cardinalities), generator=source) < share
        keep[[0, 20_000, 23_000, 23_050]] = True
        kept = [int(part.sum()) for part in torch.split(keep, list(BIG.cardinalities))]
        layer._set(keep, widths)
        assert layer._size()(widths, kept) == layer.memory().serving


def test_rows_are_kept_by_score_and_every_feature_keeps_one() -> None:
    scores = torch.tensor([5.0, 1.0, 3.0, -9.0, -8.0, 2.0])
    order = RowOrder(scores, (3, 2, 1))
    assert order.rank.tolist() == [0, 4, 3, 5, 1, 2]
    assert order.kept(3) == (1, 1, 1)
    assert order.kept(4) == (2, 1, 1)
    size = fe.embedding(SMALL, "optembed", dim=DIM)._size()
    big = RowOrder(torch.rand(47, generator=torch.Generator().manual_seed(0)), SMALL.cardinalities)
    for one, two in pairwise(fit_rows(size, big, (4, 2, 3), limit) for limit in range(60, 700, 9)):
        assert one <= two
    for limit in range(60, 700, 9):
        count = fit_rows(size, big, (4, 2, 3), limit)
        if count:
            assert size((4, 2, 3), big.kept(count)) <= limit


class Planted:
    """Labels that follow from the first k_f numbers of the vectors; the others are noise."""

    def __init__(self, widths: tuple[int, ...], spec: str, **options: Any) -> None:
        self.layer = fe.embedding(SMALL, spec, dim=DIM, seed=9, **options)
        self.model = LinearReader(self.layer)
        with torch.no_grad():
            source = torch.Generator().manual_seed(2)
            weight = self.layer.net.rows.weight
            weight.copy_(torch.randn(weight.shape, generator=source))
            self.model.weight.copy_(torch.randn(12, generator=source) + 2)
        ids = batches(1, 4000)[0].ids
        offsets = torch.tensor([0, 30, 42])
        vectors = weight.detach()[ids + offsets] * (
            torch.arange(DIM) < torch.tensor(widths)[:, None]
        )
        logits = vectors.flatten(1) @ self.model.weight.detach()
        self.data = [TaskBatch(ids, None, (logits > logits.median()).float())]

    def evaluator(self) -> fe.Evaluator:
        return fe.Evaluator(self.model, lambda: self.data, auc)


def auc(label: Tensor, logits: Tensor) -> float:
    order = torch.empty(len(label)).index_copy_(
        0, logits.argsort(), torch.arange(1.0, len(label) + 1)
    )
    positives = float(label.sum())
    ranks = float(order[label > 0].double().sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * (len(label) - positives))


@pytest.mark.parametrize("together", [True, False])
def test_the_search_finds_a_planted_architecture(together: bool) -> None:
    planted = Planted((3, 1, 4), "optembed(mode=faithful, generations=12)")
    staging.begin(planted.model, planted.layer.stages()[0])
    evaluator = planted.evaluator()
    evaluate = evaluator if together else evaluator.__call__
    staging.search(planted.model, planted.layer.stages()[1], evaluate)
    assert planted.layer.net.widths.tolist() == [3, 1, 4]
    assert evaluator() == 1.0
    again = Planted((3, 1, 4), "optembed(mode=faithful, generations=12)")
    staging.begin(again.model, again.layer.stages()[0])
    staging.search(again.model, again.layer.stages()[1], again.evaluator())
    assert torch.equal(again.layer.net.widths, planted.layer.net.widths)


def test_variants_score_as_one_at_a_time() -> None:
    planted = Planted((2, 2, 2), "optembed(generations=2)", ratio=2)
    scored: dict[str, list[float]] = {"together": [], "apart": []}
    evaluator = planted.evaluator()

    class Noted:
        def __call__(self) -> float:
            raise AssertionError("one at a time")

        def variants(self, count: int) -> list[float]:
            found = evaluator.variants(count)
            scored["together"] += found
            return found

    def alone() -> float:
        scored["apart"].append(evaluator())
        return scored["apart"][-1]

    first = copy.deepcopy(planted.model)
    for evaluate in (Noted(), alone):
        planted.model.load_state_dict(first.state_dict())
        planted.layer.stage = "supernet"
        staging.search(planted.model, planted.layer.stages()[1], evaluate)
    assert scored["together"] == pytest.approx(scored["apart"], abs=1e-6)
    assert len(scored["apart"]) > 20


def test_widths_are_drawn_evenly_and_anew() -> None:
    layer = fe.embedding(SMALL, "optembed(prune=dims, limit=400, init=1.0)", dim=DIM)
    staging.begin(layer, layer.stages()[0])
    ids = torch.zeros(4000, 3, dtype=torch.int64)
    one, two = layer(ids), layer(ids)
    assert not torch.equal(one, two)
    widths = (one.view(4000, 3, DIM) != 0).sum(-1)
    counts = torch.bincount(widths.flatten(), minlength=5)[1:].float()
    assert (counts / 3000 - 1).abs().max() < 0.1
    both = (widths[:, 0] == widths[:, 1]).float().mean()
    assert abs(float(both) - 0.25) < 0.05  # features draw apart


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("optembed(mode=exact)", "mode must be 'budget' or 'faithful'"),
        ("optembed(mode=faithful, limit=100)", "limit must be none in mode=faithful"),
        ("optembed(norm=3)", "norm must be 1 or 2"),
        ("optembed(mutation=1.5)", "mutation must be between 0 and 1"),
        ("optembed(alpha=-1.0)", "alpha must be at least 0"),
        ("optembed(retrain=later)", "retrain must be"),
    ],
)
def test_bad_settings_are_named(spec: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(spec)
