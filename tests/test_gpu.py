"""The same answers and steps on a CUDA device."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import featemb as fe
from featemb.check.case import BAGS, LinearReader, TaskBatch, bags, single_ids, task

pytestmark = pytest.mark.gpu
SPEC = "unified(lookups=2)"


def _batches(device: str) -> list[TaskBatch]:
    return [TaskBatch(one.ids.to(device), None, one.label.to(device)) for one in task(10)]


def _train(model: nn.Module, optimizers: list[torch.optim.Optimizer], device: str) -> None:
    for batch in _batches(device):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", fe.optim.OPTIMIZERS)
def test_training_follows_the_cpu(name: str) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        model = LinearReader(fe.check.Case(SPEC).layer(device=device)).to(device)
        _train(model, fe.optim.build(model, lr=0.02, optimizer=name), device)
        weights.append(model.layer.source.rows.weight.detach().cpu())
    assert torch.allclose(*weights, atol=1e-4)


def test_a_checkpoint_read_on_the_cpu_goes_on() -> None:
    model = LinearReader(fe.check.Case(SPEC).layer(device="cuda")).to("cuda")
    optimizers = fe.optim.build(model, lr=0.02)
    _train(model, optimizers, "cuda")
    file = io.BytesIO()
    torch.save([one.state_dict() for one in optimizers], file)
    file.seek(0)
    for one, state in zip(optimizers, torch.load(file, map_location="cpu"), strict=True):
        one.load_state_dict(state)
    _train(model, optimizers, "cuda")


@pytest.mark.parametrize("codec", fe.codecs())
def test_frozen_layers_answer_alike(codec: str) -> None:
    frozen = fe.check.Case(SPEC).layer(BAGS).freeze(codec)
    wanted = frozen(bags())
    given = frozen.to("cuda")(bags().to("cuda"))
    assert torch.allclose(given.cpu(), wanted, atol=1e-6)


@pytest.mark.parametrize("codec", fe.codecs())
def test_freezing_on_the_device_stores_the_same(codec: str) -> None:
    here, there = (fe.check.Case(SPEC).layer(device=one).freeze(codec) for one in ("cpu", "cuda"))
    assert torch.allclose(there(single_ids().cuda()).cpu(), here(single_ids()), atol=2e-3)


def test_bad_ids_are_named() -> None:
    layer = fe.check.Case(SPEC).layer(device="cuda")
    ids = single_ids(4).cuda()
    ids[2, 1] = 41
    with pytest.raises(fe.IdError, match="'item': id 41 in sample 2"):
        layer(ids)
