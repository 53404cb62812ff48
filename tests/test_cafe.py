"""CAFE: what it counts, stores and learns. `test_cafe_sketch` holds it against a plain sketch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from public_sizes import SCHEMAS
from test_cafe_sketch import DIM, ENDLESS, SCHEMA, label_of, train_step, zipf_ids
from test_methods import plain_bucket, plain_salts
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.check.case import LinearReader, TaskBatch, mean_loss
from featemb.errors import BudgetError, ConfigError
from featemb.fit import fit
from featemb.ids import Jagged
from featemb.sketch import Lookups


@pytest.mark.parametrize("levels", [2, 3])
def test_update_reads_no_value_on_the_host(levels: int) -> None:
    spec = f"cafe(rows=90, levels={levels}, threshold=3.0)"
    layer = fe.embedding(SCHEMA, spec, dim=DIM, device="meta")
    weight = layer.source.rows.weight
    optimizer = optim.RowAdam([weight])
    optimizer.allocate()
    layer.sketch.inserted += 10**6  # time to decay
    empty = torch.empty(500, dtype=torch.int64, device="meta")
    layer._seen.append(Lookups(empty, empty, empty.float()))
    layer.after_step(1)  # the meta device has no values and refuses to give any
    assert int(layer.sketch.inserted) == 0


def test_hot_ids_own_their_rows() -> None:
    schema = fe.Schema([fe.Feature("user", 5000), fe.Feature("item", 5000)])
    layer = fe.embedding(schema, "cafe(threshold=8.0)", dim=8, ratio=20)
    optimizers = optim.build(layer, 0.02)
    for step in range(60):
        ids = zipf_ids(step, 128, schema)
        train_step(layer, optimizers, ids, label_of(ids, step), step + 1)
    rows = layer.source.address(torch.arange(20)[:, None], torch.arange(2))
    hot = layer.source.address.keys.shape[0]
    private = rows[rows < hot]
    assert len(private) >= 34
    assert len(private.unique()) == len(private)
    pointers = layer.source.address.pointers
    used = pointers[pointers >= 0]
    assert len(used.unique()) == len(used) == hot - int(layer.sketch.num_free)


def test_lookups_are_counted_once_and_only_in_training() -> None:
    layer = fe.embedding(SCHEMA, "cafe(rows=120, score=frequency)", dim=DIM)
    ids = zipf_ids(0)
    with torch.no_grad():
        layer(ids)
    layer.eval()(ids).sum().backward()
    layer.train()(ids)  # no gradient comes back
    layer.after_step(1)
    assert int(layer.sketch.inserted) == 0
    assert float(layer.sketch.scores.sum()) == 0
    loss = layer(ids[:8]).sum() + layer(ids[8:20]).sum()
    loss.backward()
    layer(ids[20:]).sum().backward()
    layer.after_step(2)
    assert int(layer.sketch.inserted) == 48 * 2  # day is whole
    again = fe.embedding(SCHEMA, "cafe(rows=120, score=frequency)", dim=DIM)
    again(ids).sum().backward()
    again.after_step(1)
    assert torch.equal(again.sketch.scores, layer.sketch.scores)
    for _ in range(100):  # a loop that never calls after_step holds few batches
        again(ids).sum().backward()
    assert len(again._seen) == 64


def test_bags_are_counted_as_single_ids_are() -> None:
    spec = "cafe(rows=120, threshold=2.0, decay=1.0)"  # it counts whole features' bags as well
    multi = fe.Schema(fe.Feature(f.name, f.cardinality, multi=True) for f in SCHEMA.features)
    single = fe.embedding(SCHEMA, spec, dim=DIM)
    bags = fe.embedding(multi, spec, dim=DIM)
    for step in range(5):
        ids = zipf_ids(step)
        jagged = Jagged(ids.t().reshape(-1), torch.ones(ids.numel(), dtype=torch.int64))
        train_step(single, optim.build(single, 0.1), ids, label_of(ids, step), step)
        train_step(bags, optim.build(bags, 0.1), jagged, label_of(ids, step), step)
    assert torch.equal(single.source.address.pointers, bags.source.address.pointers)
    assert torch.allclose(single.sketch.scores, bags.sketch.scores, atol=1e-4)
    assert int((single.source.address.pointers >= 0).sum()) > 0


def test_a_skipped_step_leaves_scores_finite() -> None:
    layer = fe.embedding(SCHEMA, "cafe(rows=120)", dim=DIM)
    (layer(zipf_ids(0)) * float("inf")).sum().backward()
    layer.after_step(1)
    assert torch.isfinite(layer.sketch.scores).all()


@pytest.mark.parametrize("levels", [2, 3])
def test_state_dict_resumes_in_the_middle_of_a_decay_period(levels: int) -> None:
    spec = f"cafe(rows=120, threshold=3.0, decay=0.5, levels={levels})"
    one, other = (fe.embedding(SCHEMA, spec, dim=DIM, seed=seed) for seed in (1, 2))
    optimizers = optim.build(one, 0.05, "row_sgd")
    for step in range(5):
        train_step(one, optimizers, zipf_ids(step), label_of(zipf_ids(step), step), step)
    assert int(one.sketch.inserted) > 0
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    fresh = optim.build(other, 0.05, "row_sgd")
    for step in range(5, 20):
        for layer, its in ((one, optimizers), (other, fresh)):
            train_step(layer, its, zipf_ids(step), label_of(zipf_ids(step), step), step)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(("schema", "slot"), [(SCHEMA, 8), (ENDLESS, 12)])
@pytest.mark.parametrize("levels", [2, 3])
def test_bytes(levels: int, schema: fe.Schema, slot: int) -> None:
    layer = fe.embedding(schema, f"cafe(rows=200, levels={levels})", dim=DIM)
    hot = layer.source.address.keys.shape[0]
    rows = {"rows": 200 * DIM * 4, "seeds": 8}
    assert layer.memory().parts == rows | {"sketch": 4 * slot * hot}
    scores = 4 * hot * 4 + 4 * hot + 8
    assert layer.memory().training_parts == rows | {"sketch": 4 * slot * hot + scores}


def test_frozen_keeps_only_keys_that_decide() -> None:
    layer = fe.embedding(SCHEMA, "cafe(rows=120, threshold=4.0)", dim=DIM)
    optimizers = optim.build(layer, 0.05)
    for step in range(8):
        train_step(layer, optimizers, zipf_ids(step), label_of(zipf_ids(step), step), step)
    frozen = layer.freeze().source.address
    hot = layer.source.address.pointers >= 0
    assert 0 < int(hot.sum()) < int((layer.source.address.keys >= 0).sum())
    assert torch.equal(frozen.keys >= 0, hot)
    assert torch.equal(frozen.pointers, layer.source.address.pointers)


def test_default_split_and_threshold() -> None:
    schema = fe.Schema([fe.Feature("a", 1_000_000)])
    tuned = {2: (0.7, 10), 10: (0.5, 20), 100: (0.3, 100), 1000: (0.2, 500)}  # the authors'
    for ratio, (cold_share, threshold) in tuned.items():
        layer = fe.embedding(schema, "cafe", dim=16, ratio=ratio, device="meta")
        cold = layer.source.address.sizes[0] * 64
        assert cold / layer.memory().serving == pytest.approx(cold_share, abs=0.03)
        assert layer.sketch.threshold == pytest.approx(threshold, rel=0.3)


def test_unseen_ids() -> None:
    layer = fe.embedding(SCHEMA, "cafe(rows=120, threshold=4.0)", dim=DIM, seed=3)
    start = layer.source.rows.weight.detach().clone()
    optimizers = optim.build(layer, 0.05)
    for step in range(8):
        ids = zipf_ids(step) % 200  # users from 200 and day 2 never occur
        ids[:, 2] %= 2
        train_step(layer, optimizers, ids, label_of(ids, step), step)
    salt = plain_salts(3, 9)
    address = layer.source.address
    weight = layer.source.rows.weight
    for user in (200, 555, 899):
        vector = layer.lookup(torch.tensor([user]), torch.tensor([0]))[0]
        row = address.offsets[0] + plain_bucket(user, salt[0], address.sizes[0])
        assert torch.equal(vector, weight[row])
    assert address.whole == (False, False, True)
    assert torch.equal(
        layer.lookup(torch.tensor([2]), torch.tensor([2]))[0], start[address.offsets[2] + 2]
    )


def test_errors() -> None:
    for settings, word in {
        "levels=4": "2 or 3",
        "hot_share=1.0": "between 0 and 1",
        "medium_share=0.0": "between 0 and 1",
        "power=-1.0": "between 0 and 1",
        "score=loss": "gradient, frequency",
        "threshold=0.0": "above 0",
        "decay=1.5": "at most 1",
        "rows=0": "at least 1",
        "rows=3": "at least 4",
        "rows=4, levels=3": "at least 5",
    }.items():
        with pytest.raises(ConfigError, match=word):
            fe.embedding(SCHEMA, f"cafe({settings})", dim=DIM)
    with pytest.raises(ConfigError, match="rows or a budget"):
        fe.embedding(ENDLESS, "cafe", dim=DIM)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("ratio", [2, 10, 100, 1000])
def test_budgets(levels: int, ratio: int) -> None:
    schema = SCHEMAS["criteo"]
    layer = fe.embedding(schema, f"cafe(levels={levels})", ratio=ratio, device="meta")
    limit = schema.full_bytes(16) / ratio
    assert limit - 200 < layer.memory().serving <= limit
    floor = 64 * (26 + levels - 1) + 32 + 8
    with pytest.raises(BudgetError) as error:
        fe.embedding(schema, f"cafe(levels={levels})", budget=floor - 1, device="meta")
    assert error.value.floor == floor


def test_narrow_layers_hash() -> None:
    layer = fe.embedding(SCHEMA, "cafe", dim=16, ratio=4)
    first = layer.companion(1)
    assert first.config.name == "hash"
    assert first.memory().serving <= SCHEMA.full_bytes(1) / 4
    assert fe.embedding(SCHEMA, "cafe(rows=90)", dim=16).companion(1).config.rows == 90
    assert layer.companion(8).config.name == "cafe"


class TwoLayers(nn.Module):
    """Two layers with a sketch each."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = fe.embedding(SCHEMA, "cafe(rows=120, threshold=2.0)", dim=8)
        self.narrow = fe.embedding(SCHEMA, "cafe(rows=90, threshold=2.0, levels=3)", dim=1)
        self.weight = nn.Parameter(torch.linspace(-1, 1, 24))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.wide(ids) @ self.weight + self.narrow(ids).sum(1)
        return logits


def batches(schema: fe.Schema, label: Any, count: int, seed: int = 0) -> list[TaskBatch]:
    made = []
    for number in range(count):
        ids = zipf_ids(seed + number, 128, schema)
        made.append(TaskBatch(ids, None, label(ids, seed + number)))
    return made


def test_two_layers_in_a_model() -> None:
    model = TwoLayers()
    data = batches(SCHEMA, label_of, 20)
    fit(model, lambda epoch: data, epochs=1, lr=0.02)
    for layer in (model.wide, model.narrow):
        assert int((layer.source.address.pointers >= 0).sum()) > 0


def test_better_than_hashing_on_skewed_ids() -> None:
    schema = fe.Schema([fe.Feature("user", 4000), fe.Feature("item", 4000)])
    taste = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 1.5

    def label(ids: Tensor, seed: int) -> Tensor:
        logits = taste[0, ids[:, 0]] + taste[1, ids[:, 1]]
        uniform = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed))
        return (uniform < logits.sigmoid()).float()

    train, test = batches(schema, label, 150), batches(schema, label, 30, seed=10_000)
    losses = {}
    for spec in ("hash", "cafe(threshold=20.0)", "cafe(threshold=20.0, levels=3)"):
        layer = fe.embedding(schema, spec, dim=8, ratio=40)
        model = LinearReader(layer)
        fit(model, lambda epoch: train, epochs=2, lr=0.02)
        losses[spec] = mean_loss(model.eval(), test)
        assert layer.memory().serving <= schema.full_bytes(8) / 40
    hashed, *found = losses.values()
    assert max(found) < hashed - 0.02, losses
