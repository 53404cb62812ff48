"""Every method on a CUDA device: all of its stages, its served form, and the steps of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from curves import loss_curve
from torch.nn.functional import binary_cross_entropy_with_logits

import featemb as fe
from featemb.check.case import Case, LinearReader, TaskBatch, single_ids, task

pytestmark = pytest.mark.gpu
SPECS = [spec for specs in cases.CASES.values() for spec in specs]
# They draw random numbers at every step, on the device where their rows are.
RANDOM = ("autodim", "lowprec", "alpt", "optembed")


def score(label: torch.Tensor, logits: torch.Tensor) -> float:
    return -float(binary_cross_entropy_with_logits(logits, label))


def on(device: str, batches: list[TaskBatch]) -> list[TaskBatch]:
    return [TaskBatch(one.ids.to(device), None, one.label.to(device)) for one in batches]


@pytest.mark.parametrize("spec", SPECS)
def test_losses_follow_the_cpu(spec: str) -> None:
    if fe.parse(spec).method.name in RANDOM:
        pytest.skip("draws random numbers on the device")
    # codes of few bits tip over where the devices' last digits differ
    near = 5e-3 if fe.parse(spec).method.name in ("lsq", "mpe", "dpq", "mgqe") else 2e-4
    assert loss_curve(spec, 10, "cuda") == pytest.approx(loss_curve(spec, 10), abs=near)


@pytest.mark.parametrize("spec", SPECS)
def test_all_stages_and_the_served_form(spec: str) -> None:
    layer = Case(spec).layer(device="cuda")
    model = LinearReader(layer).to("cuda")
    data = on("cuda", task(20))

    evaluator = fe.Evaluator(model, lambda: data, score)
    before = evaluator()
    fe.fit(model, lambda _: data, evaluator, held_out=lambda _: data[::-1], epochs=3, lr=0.03)
    layer.eval()
    assert evaluator() > before + 0.005, "does not learn"
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        assert tensor.device.type == "cuda", f"{name} is left on {tensor.device}"
    frozen = layer.freeze()
    ids = single_ids()
    assert frozen.memory().serving == layer.memory().serving
    given = frozen(ids.cuda())
    if fe.parse(spec).codec is None:
        assert torch.allclose(given, layer(ids.cuda()), atol=1e-5)
    assert torch.allclose(frozen.to("cpu")(ids), given.cpu(), atol=1e-5)


class Stopped(Exception):
    """Training is interrupted."""


@pytest.mark.parametrize("spec", ["full", "unified(lookups=2)", "cafe", "mpe", "optembed", "alpt"])
def test_a_checkpoint_of_the_device_goes_on(spec: str, tmp_path: Path) -> None:
    data = on("cuda", task(6, 32))

    def train(stop_after: int | None) -> torch.Tensor:
        model = LinearReader(Case(spec).layer(device="cuda")).to("cuda")
        told = []

        def note(record: dict[str, Any]) -> None:
            told.append(record)
            if stop_after is not None and len(told) > stop_after:
                raise Stopped

        fe.fit(
            model,
            lambda _: data,
            fe.Evaluator(model, lambda: data, score),
            held_out=lambda _: data,
            epochs=3,
            on_record=note,
            checkpoint=tmp_path / "state.pt",
        )
        return model.eval()(single_ids().cuda()).detach()

    with pytest.raises(Stopped):
        train(1)
    resumed = train(None)
    (tmp_path / "state.pt").unlink()
    assert torch.allclose(resumed, train(None), atol=1e-2)


@pytest.mark.parametrize("spec", ["full", "unified(lookups=2)", "qr", "robe", "lowdim+int8"])
def test_a_compiled_layer_answers_alike(spec: str) -> None:
    frozen = Case(spec).layer(device="cuda").freeze()
    ids = single_ids(256).cuda()
    torch.testing.assert_close(torch.compile(frozen)(ids), frozen(ids), atol=1e-5, rtol=1e-5)


def test_no_step_walks_a_large_table() -> None:
    """A step's peak is far below the bytes of a table's dense gradient."""
    schema = fe.Schema([fe.Feature("item", 4_000_000)])
    model = LinearReader(fe.embedding(schema, "full", dim=16, device="cuda")).to("cuda")
    optimizers = fe.optim.build(model, lr=0.02)
    ids = torch.randint(0, 4_000_000, (1024, 1), device="cuda")
    label = torch.rand(1024, device="cuda").round()
    torch.cuda.synchronize()
    for _ in range(2):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = binary_cross_entropy_with_logits(model(ids), label)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() - before < 4_000_000 * 16 * 4 / 10
