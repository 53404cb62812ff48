"""OptFS: gates and their gradients by formula, annealing, the stages, what is kept and served."""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import pytest
import torch
from public_sizes import SCHEMAS
from torch import Tensor, nn

import featemb as fe
from featemb import optim, staging
from featemb.memory import module_bytes
from featemb.parts.kept import KeptRows

PAIR = fe.Schema([fe.Feature("a", 40), fe.Feature("b", 12)])
BIG = fe.Schema(
    [fe.Feature("a", 20_000), fe.Feature("b", 3_000), fe.Feature("c", 50), fe.Feature("d", 7)]
)
DIM = 4
SEARCH = fe.Stage("search")
RETRAIN = fe.Stage("retrain", weights="initial")
EVERY = torch.tensor([[a, b] for a in range(40) for b in range(12)])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def made(settings: str, seed: int = 0) -> Any:
    """A layer in its search, whose gates are spread out."""
    layer: Any = fe.embedding(PAIR, f"optfs({settings})", dim=DIM, seed=seed)
    layer.begin_stage(SEARCH)
    with torch.no_grad():
        gates = layer.gated.gates.weight
        gates.copy_(torch.randn(gates.shape, generator=torch.Generator().manual_seed(3)) + 0.2)
    return layer


def draw(seed: int, size: int = 16) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    columns = [torch.randint(n, (size,), generator=source) for n in PAIR.cardinalities]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("start", [0.0, 0.7])
@pytest.mark.parametrize("steps", [0, 3, 10, 25])
def test_vectors_penalty_and_gradients_are_those_of_the_formulas(start: float, steps: int) -> None:
    layer = made(f"kept=9, anneal_steps=10, temperature=30.0, start={start}, strength=0.4")
    for step in range(1, steps + 1):
        layer.after_step(step)
    tau = 30.0 ** min(1.0, steps / 10)
    g = layer.gated.gates.weight[:, 0].tolist()
    ids = draw(0)
    rows = (ids + torch.tensor([0, 40])).reshape(-1).tolist()
    out = layer(ids)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    for n, (row, vector) in enumerate(zip(rows, out.view(-1, DIM), strict=True)):
        gate = sigmoid(g[row] * tau) / sigmoid(start)
        torch.testing.assert_close(vector, layer.weight[row] * gate, msg=str(n))
    penalty = layer.penalty()
    assert float(penalty.detach()) == pytest.approx(
        0.4 / 52 * sum(sigmoid(x * tau) for x in g), rel=1e-5
    )
    ((out * weights).sum() + penalty).backward()
    expected = [0.4 / 52 * tau * sigmoid(x * tau) * (1 - sigmoid(x * tau)) for x in g]
    for row, vector in zip(rows, weights.view(-1, DIM), strict=True):
        slope = tau * sigmoid(g[row] * tau) * (1 - sigmoid(g[row] * tau)) / sigmoid(start)
        expected[row] += slope * float(layer.weight[row].detach() @ vector)
    found = layer.gated.gates.weight.grad[:, 0]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-3)


def test_the_penalty_of_the_batch_reaches_its_ids_once() -> None:
    layer = made("kept=9, penalty=batch, strength=2.0")
    optim.RowAdam(layer.parameters())
    assert float(layer.penalty()) == 0
    ids = torch.tensor([[3, 1], [3, 2], [5, 1]])
    layer(ids)
    penalty = layer.penalty()
    rows = [3, 5, 41, 42]
    g = layer.gated.gates.weight[:, 0]
    assert float(penalty.detach()) == pytest.approx(
        2 / 52 * float(torch.sigmoid(g[rows]).detach().sum())
    )
    penalty.backward()
    grad = layer.gated.gates.weight.grad
    assert grad.is_sparse
    assert grad.coalesce().indices()[0].tolist() == rows


@pytest.mark.parametrize("optimizer", ["row_adam", "dense_adam", "row_sgd"])
@pytest.mark.parametrize("penalty", ["all", "batch"])
def test_every_optimizer_learns_gates(optimizer: str, penalty: str) -> None:
    layer: Any = fe.embedding(PAIR, f"optfs(kept=9, penalty={penalty}, gate_lr=0.5)", dim=DIM)
    layer.begin_stage(SEARCH)
    optimizers = optim.build(layer, 0.1, optimizer, weight_decay=0.1, stage=SEARCH)
    groups = [group for one in optimizers for group in one.param_groups]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.1), (0.5, 0.0)]
    for step in range(1, 4):
        loss = layer(draw(step)[:4]).square().sum() + layer.penalty()
        layer.zero_grad()
        loss.backward()
        for one in optimizers:
            one.step()
        layer.after_step(step)
    moved = (layer.gated.gates.weight[:, 0] != 0).nonzero()[:, 0].tolist()
    seen = {
        int(n) for step in range(1, 4) for n in (draw(step)[:4] + torch.tensor([0, 40])).view(-1)
    }
    assert set(moved) == (seen if penalty == "batch" else set(range(52)))


def test_the_rows_of_largest_gates_are_kept_ids_without_a_gradient_last() -> None:
    layer = made("kept=20")
    g = layer.gated.gates.weight.detach()
    g.abs_().neg_()
    g[[2, 7, 45]] = 0.0  # never moved
    best = sorted(set(range(52)) - {2, 7, 45}, key=lambda n: -float(g[n]))
    layer.eval()
    assert layer.gated.keep[:, 0].nonzero()[:, 0].tolist() == sorted(best[:20])
    many = made("kept=51")
    with torch.no_grad():
        many.gated.gates.weight.copy_(g)
    assert (~many.eval().gated.keep).nonzero()[:, 0].tolist() == [7]  # ties: the frequent ids


def test_an_untrained_layer_keeps_the_frequent_ids() -> None:
    counts = {"a": torch.arange(40).numpy(), "b": torch.full((12,), 38).numpy()}
    layer: Any = fe.embedding(PAIR, "optfs(kept=10)", dim=DIM, counts=counts)
    assert layer.eval().gated.keep.nonzero()[:, 0].tolist() == [38, 39, *range(40, 48)]


@pytest.mark.parametrize("steps", [0, 7])
def test_gates_are_folded_into_the_rows_bit_for_bit(steps: int) -> None:
    layer = made("kept=19, anneal_steps=9, temperature=50.0")
    for step in range(1, steps + 1):
        layer.after_step(step)
    training = layer.freeze()
    frozen = layer.eval().freeze()
    assert isinstance(frozen.source.rows, KeptRows)
    assert torch.equal(frozen(EVERY), layer(EVERY))
    assert torch.equal(frozen(EVERY), training(EVERY))
    tau = 50.0 ** min(1.0, steps / 9)
    for n in range(52):
        gate = 2 * sigmoid(float(layer.gated.gates.weight[n].detach()) * tau)
        wanted = layer.weight[n].detach() * gate * layer.gated.keep[n]
        place = torch.tensor([[n, 0]]) if n < 40 else torch.tensor([[0, n - 40]])
        found = frozen(place)[0, :DIM] if n < 40 else frozen(place)[0, DIM:]
        torch.testing.assert_close(found, wanted)


def test_retraining_starts_over_with_the_chosen_rows() -> None:
    layer: Any = fe.embedding(PAIR, "optfs(kept=11)", dim=DIM)
    model = nn.Sequential(layer, nn.Linear(2 * DIM, 1))
    start = copy.deepcopy(model.state_dict())
    staging.begin(model, SEARCH, start)
    optimizers = optim.build(model, 0.05, stage=SEARCH)
    for step in range(1, 21):
        loss = (model(draw(step)) - 1).square().mean() + layer.penalty()
        model.zero_grad()
        loss.backward()
        for one in optimizers:
            one.step()
        layer.after_step(step)
    best = layer.gated.gates.weight[:, 0].topk(11).indices.sort().values
    searched = layer.gated.gates.weight.detach().clone()
    assert layer.gated.steps == 20
    staging.begin(model, RETRAIN, start)
    assert torch.equal(layer.gated.keep.nonzero()[:, 0], best)
    assert torch.equal(layer.weight, start["0.source.rows.rows.weight"])
    assert torch.equal(model[1].weight, start["1.weight"])
    assert torch.equal(layer.gated.gates.weight, searched)
    groups = layer.param_groups(0.1)
    assert [list(group["params"]) for group in groups] == [[layer.weight]]
    assert float(layer.penalty()) == 0
    out = layer(EVERY)
    plain = torch.where(layer.gated.keep, layer.weight, 0.0)
    rows = (EVERY + torch.tensor([0, 40])).reshape(-1)
    assert torch.equal(out.view(-1, DIM), plain[rows])
    layer.after_step(1)
    assert torch.equal(layer.eval()(EVERY), out)
    assert torch.equal(layer.freeze()(EVERY), out)


def test_gates_find_the_ids_that_carry_signal() -> None:
    """All ids occur equally often; every fifth decides the label."""
    total, kept = 200, 40
    effects = torch.where(torch.arange(total) % 5 == 0, 4.0, 0.0)
    layer: Any = fe.embedding(
        fe.Schema([fe.Feature("x", total)]), f"optfs(kept={kept}, anneal_steps=200)", dim=DIM
    )
    layer.begin_stage(SEARCH)
    bias = nn.Parameter(torch.zeros(1))
    optimizers = [*optim.build(layer, 0.02, stage=SEARCH), torch.optim.Adam([bias], 0.02)]
    source = torch.Generator().manual_seed(0)
    for step in range(1, 301):
        ids = torch.randint(total, (256,), generator=source)
        label = (torch.rand(256, generator=source) < torch.sigmoid(effects[ids])).float()
        logits = layer(ids[:, None]).sum(1) + bias
        loss = nn.functional.binary_cross_entropy_with_logits(logits, label)
        for one in optimizers:
            one.zero_grad()
        (loss + layer.penalty()).backward()
        for one in optimizers:
            one.step()
        layer.after_step(step)
    kept_ids = layer.eval().gated.keep.nonzero()[:, 0]
    assert int((kept_ids % 5 == 0).sum()) > 0.9 * kept


@pytest.mark.parametrize("ratio", [2, 5, 10, 100])
def test_bytes_are_within_a_row_of_the_budget(ratio: int) -> None:
    limit = BIG.full_bytes(16) // ratio
    layer: Any = fe.embedding(BIG, "optfs", dim=16, ratio=ratio)
    total = sum(BIG.cardinalities)
    for stage in layer.stages():
        layer.begin_stage(stage)
        memory = layer.memory()
        assert limit - 4 * 17 < memory.serving <= limit
        assert sum(module_bytes(layer.eval().freeze()).values()) == memory.serving
        assert memory.training == total * (4 * 16 + 4 + 1) + 8
        layer.train()


def test_public_sizes_are_solved_at_once() -> None:
    schema = SCHEMAS["criteo"]
    began = time.process_time()
    layer = fe.embedding(schema, "optfs", dim=16, ratio=100, device="meta")
    assert time.process_time() - began < 2
    limit = schema.full_bytes(16) // 100
    assert limit - 4 * 17 < layer.memory().serving <= limit


@pytest.mark.parametrize(
    "setting",
    [
        *("strength=-1.0", "penalty=some", "temperature=0.5"),
        *("anneal_steps=0", "start=11.0", "gate_lr=0.0"),
    ],
)
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(fe.ConfigError, match=setting.split("=")[0]):
        fe.embedding(PAIR, f"optfs({setting})")
