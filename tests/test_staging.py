"""Stages of whole models: companions, rewinding, search, and what must be given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from searching import Searching
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import featemb as fe
from featemb.check.case import SINGLE, LinearReader, mean_loss, single_ids, task

DATA = task(4, batch=32)


class Two(nn.Module):
    """A model of two layers, as with first-order weights."""

    def __init__(self, *layers: fe.FeatureEmbedding) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layers)

    def forward(self, ids: Any) -> Tensor:
        return sum((layer(ids).sum(1) for layer in self.parts), torch.zeros(len(ids)))


def magnitude() -> fe.FeatureEmbedding:
    return fe.embedding(SINGLE, "magnitude", dim=4)


def heard(layer: fe.FeatureEmbedding, patch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that a layer is told of."""
    names: list[str] = []
    begin = layer.begin_stage
    patch.setattr(layer, "begin_stage", lambda stage: (names.append(stage.name), begin(stage)))
    return names


def test_the_layer_with_most_stages_leads() -> None:
    plain, staged = fe.embedding(SINGLE, "full", dim=4), Searching()
    for net in (Two(plain, staged), Two(staged, plain)):
        assert fe.staging.stages(net) == staged.stages()
        assert fe.staging.rewinds(net)
    assert not fe.staging.rewinds(Two(plain, magnitude()))
    with pytest.raises(fe.RunError, match="no featemb"):
        fe.staging.stages(nn.Linear(1, 1))


def test_a_companion_hears_of_its_own_stages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, pruned, staged = fe.embedding(SINGLE, "full", dim=4), magnitude(), Searching()
    staged.plan = (fe.Stage("train"), fe.Stage("pick", "search"), fe.Stage("more"))
    told = {name: heard(layer, monkeypatch) for name, layer in
            (("plain", plain), ("pruned", pruned), ("staged", staged))}  # fmt: skip
    net = Two(plain, pruned, staged)
    fe.fit(net, lambda epoch: DATA, lambda: -mean_loss(net, DATA), epochs=1)
    assert told == {
        "plain": ["train"],
        "pruned": ["train"],
        "staged": ["train", "pick", "more"],
    }


def test_a_companion_without_the_stage_is_trained_in_it() -> None:
    plain, staged = fe.embedding(SINGLE, "full", dim=4), Searching()
    staged.plan = (fe.Stage("one"), fe.Stage("two"))
    net = Two(plain, staged)
    weights: list[Tensor] = []

    def batches(epoch: int) -> Any:
        weights.append(plain.source.rows.weight.detach().clone())
        return DATA

    fe.fit(net, batches, epochs=1, lr=0.1)
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], plain.source.rows.weight)


def changed(net: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.add_(1.0)


def test_a_rewind_spares_the_architecture() -> None:
    layer = Searching()
    net = LinearReader(layer)
    start = copy.deepcopy(net.state_dict())
    changed(net)
    layer.steps.add_(5)
    fe.staging.begin(net, layer.plan[3], start)
    for name, tensor in net.state_dict().items():
        if name == "layer.mask":
            assert torch.equal(tensor, start[name] + 1)
        elif not name.endswith("extra_state"):
            assert torch.equal(tensor, start[name]), name
    assert layer.stage == "again"
    assert layer.steps.item() == 0


def test_a_rewind_of_the_layer_alone_knows_its_names() -> None:
    layer = Searching()
    start = copy.deepcopy(layer.state_dict())
    changed(layer)
    mask = layer.mask.clone()
    fe.staging.rewind(layer, start)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.gate, start["gate"])


def test_the_start_is_not_changed_by_a_rewind() -> None:
    layer = Searching()
    start = copy.deepcopy(layer.state_dict())
    kept = copy.deepcopy(start)
    fe.staging.rewind(layer, start)
    changed(layer)
    for name, tensor in start.items():
        assert torch.equal(tensor, kept[name])


def test_a_rewind_needs_the_start() -> None:
    layer = Searching()
    with pytest.raises(fe.RunError, match="'again' rewinds the model: its start is needed"):
        fe.staging.begin(layer, layer.plan[3])
    fe.staging.begin(layer, layer.plan[0])


def test_held_out_batches_must_be_given() -> None:
    net = LinearReader(Searching())
    with pytest.raises(fe.RunError, match="pass held_out="):
        fe.fit(net, lambda epoch: DATA, lambda: 0.0)
    with pytest.raises(fe.RunError, match="held_out gives no batches"):
        fe.fit(net, lambda epoch: DATA, lambda: 0.0, held_out=lambda epoch: [])


def test_a_search_is_in_eval_mode_without_gradients() -> None:
    layer = Searching()
    net = LinearReader(layer).train()
    seen = []

    def evaluate() -> float:
        seen.append((net.training, torch.is_grad_enabled()))
        return float(-layer.mask[2])

    fe.staging.search(net, layer.plan[1], evaluate)
    assert seen == [(False, False)] * 4
    assert layer.mask.tolist() == [1, 1, 0, 1]
    assert net.training


def test_held_out_batches_train_their_groups_alone() -> None:
    layer = Searching()
    layer.plan = (fe.Stage("both", held_out=True, epochs=1),)
    net = LinearReader(layer)
    states: list[dict[str, Tensor]] = []

    def note(*_: Any) -> None:
        states.append({k: v.detach().clone() for k, v in net.named_parameters()})

    handle = register_optimizer_step_post_hook(note)
    start = {k: v.detach().clone() for k, v in net.named_parameters()}
    fe.fit(net, lambda epoch: DATA[:2], held_out=lambda epoch: DATA[2:3], lr=0.1)
    handle.remove()
    moved = [
        {k for k in new if not torch.equal(new[k], old[k])}
        for old, new in zip([start, *states], states, strict=False)
    ]
    train, held_out = {"weight", "layer.source.rows.weight"}, {"layer.gate"}
    assert moved == [train, held_out, train, held_out]


def test_the_stage_travels_in_the_state() -> None:
    layer, other = Searching(), Searching(seed=1)
    assert layer.stage == ""
    fe.staging.begin(layer, layer.plan[2])
    other.load_state_dict(layer.state_dict())
    assert other.stage == "on"
    assert torch.equal(other(single_ids(4)), layer(single_ids(4)))
