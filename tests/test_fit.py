"""The reference loop: stages, hooks, early stopping, and a user's own loop beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import featemb as fe
from featemb.check.case import LinearReader, TaskBatch, mean_loss, task
from featemb.stage import Stage

DATA = task(12)


def model(layer: fe.FeatureEmbedding | None = None) -> LinearReader:
    return LinearReader(layer or fe.check.Case("unified(lookups=2)").layer())


def test_ten_lines_of_your_own_do_the_same() -> None:
    ours, own = model(), model()
    fe.fit(ours, lambda epoch: DATA, epochs=2, lr=0.02)

    optimizers = fe.optim.build(own, lr=0.02)
    own.layer.begin_stage(own.layer.stages()[0])
    for step, batch in enumerate(DATA * 2, start=1):
        loss = binary_cross_entropy_with_logits(own(batch.ids), batch.label) + own.layer.penalty()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        own.layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        own.layer.after_step(step)

    for one, other in zip(ours.parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_weights_come_back() -> None:
    net = model()
    seen: list[Tensor] = []
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])

    def evaluate() -> float:
        assert not net.training
        seen.append(net.weight.detach().clone())
        return next(scores)

    history = fe.fit(net, lambda epoch: DATA, evaluate, epochs=5, lr=0.02, patience=2)
    assert (history.best_epoch, history.best_score) == (2, 0.7)
    assert history.stopped_early
    assert len(history.records) == 4
    assert torch.equal(net.weight, seen[1])
    assert not torch.equal(net.weight, seen[3])


def test_learning_rates_decay_on_a_plateau() -> None:
    rates: list[float] = []
    layer = fe.check.Case("full").layer()
    real = fe.optim.build

    def build(*args: Any, **kwargs: Any) -> list[torch.optim.Optimizer]:
        made = real(*args, **kwargs)
        optimizers.extend(made)
        return made

    optimizers: list[torch.optim.Optimizer] = []
    scores = iter([0.5, 0.4, 0.6, 0.3, 0.2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fe.optim, "build", build)
        fe.fit(
            model(layer),
            lambda epoch: DATA[:2],
            lambda: next(scores),
            epochs=5,
            lr=1.0,
            lr_decay=0.1,
            patience=3,
            on_record=lambda record: rates.append(optimizers[0].param_groups[0]["lr"]),
        )
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    net = model()
    with torch.no_grad():
        net.weight[0] = float("nan")
    with pytest.raises(fe.RunError, match="loss is nan"):
        fe.fit(net, lambda epoch: DATA, epochs=1)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(fe.RunError, match="no featemb"):
        fe.fit(nn.Linear(2, 1), lambda epoch: DATA)


def _staged(calls: list[str]) -> fe.FeatureEmbedding:
    layer = fe.check.Case("full").layer()
    stages = (Stage("super", epochs=1), Stage("pick", "search"), Stage("again", weights="initial"))

    def note(name: str, result: Any = None) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(f"{name} {getattr(args[0], 'name', args[0])}" if args else name)
            return result

        return call

    layer.stages = lambda: stages  # type: ignore[method-assign]
    layer.begin_stage = note("begin")  # type: ignore[method-assign]
    layer.after_backward = note("backward")  # type: ignore[method-assign]
    layer.after_step = note("step")  # type: ignore[method-assign]

    def search(stage: Stage, evaluate: Callable[[], float]) -> None:
        calls.append(f"search {stage.name} {evaluate() > -10}")

    layer.search = search  # type: ignore[method-assign]
    return layer


def test_stages_run_in_order_and_rewind() -> None:
    calls: list[str] = []
    net = model(_staged(calls))
    start = net.layer.source.rows.weight.detach().clone()
    began: list[Tensor] = []

    def batches(epoch: int) -> list[TaskBatch]:
        began.append(net.layer.source.rows.weight.detach().clone())
        return DATA[:2]

    history = fe.fit(net, batches, lambda: -mean_loss(net, DATA), epochs=2, lr=0.05)
    once = ["backward", "step 1", "backward", "step 2"]
    twice = [*once, "backward", "step 3", "backward", "step 4"]
    assert calls == [
        "begin super", *once, "begin pick", "search pick True", "begin again", *twice,
    ]  # fmt: skip
    assert torch.equal(began[0], start)
    assert torch.equal(began[1], start), "the last stage starts from the initial weights"
    assert not torch.equal(began[2], start)
    assert history.steps == 6


def test_the_penalty_is_part_of_the_loss() -> None:
    layer = fe.check.Case("full").layer()
    layer.penalty = lambda: layer.source.rows.weight.sum()  # type: ignore[method-assign]
    before = layer.source.rows.weight.detach().clone()
    fe.fit(model(layer), lambda epoch: DATA[:3], epochs=1, lr=0.1, optimizer="dense_adam")
    assert (layer.source.rows.weight < before).float().mean() > 0.95


def test_a_score_that_is_not_a_number_stops_the_run() -> None:
    with pytest.raises(fe.RunError, match="score is nan in stage 'train', epoch 1"):
        fe.fit(model(), lambda epoch: DATA[:1], lambda: float("nan"), epochs=3)


def test_a_search_without_a_score_is_refused() -> None:
    with pytest.raises(fe.RunError, match="'pick' searches"):
        fe.fit(model(_staged([])), lambda epoch: DATA[:1], epochs=1)


def test_evaluations_within_an_epoch() -> None:
    history = fe.fit(model(), lambda epoch: DATA, lambda: 0.5, epochs=2, eval_every=5, patience=9)
    assert [record["step"] for record in history.records] == [5, 10, 12, 15, 20, 24]
    assert (history.best_epoch, history.steps) == (1, 24)
    short = fe.fit(model(), lambda epoch: DATA, lambda: 0.5, epochs=2, eval_every=5, patience=1)
    assert [record["step"] for record in short.records] == [5, 10]
    assert short.stopped_early


def learning_rates(evaluations: list[float], **settings: Any) -> list[float]:
    """Return the learning rate of every epoch's steps."""
    net, seen = model(), []
    scores = iter(evaluations)
    original = fe.optim.RowAdam.step

    def step(self: Any, *arguments: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fe.optim.RowAdam, "step", step)
        fe.fit(net, lambda epoch: DATA, lambda: next(scores), lr=0.8, **settings)
    epochs = [seen[i : i + len(DATA)] for i in range(0, len(seen), len(DATA))]
    assert all(len(set(epoch)) == 1 for epoch in epochs)
    return [round(epoch[0], 6) for epoch in epochs]


def test_learning_rates_are_annealed_at_the_end_of_a_stage() -> None:
    rising = [0.5 + 0.01 * n for n in range(8)]
    falling = [0.7, 0.5, 0.3, 0.1]
    assert learning_rates(rising, epochs=8, anneal=0.5) == [0.8] * 4 + falling
    assert learning_rates(rising, epochs=3, anneal=0.3) == [0.8, 0.8, 0.4]
    assert learning_rates(rising, epochs=2) == [0.8, 0.8]


def test_a_stage_that_stops_early_is_annealed_to_its_end() -> None:
    scores = [0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.1]
    rates = learning_rates(scores, epochs=12, anneal=0.33, patience=2)
    assert rates == [0.8, 0.8, 0.8, 0.7, 0.5, 0.3, 0.1]  # patience runs out after the third


@pytest.mark.parametrize("settings", [{"anneal": 1.0}, {"anneal": -0.1}, {"anneal": True}])
def test_annealing_is_a_share(settings: dict[str, Any]) -> None:
    with pytest.raises(fe.ConfigError, match="anneal must be a share"):
        fe.fit(model(), lambda epoch: DATA, **settings)


def test_annealing_and_plateaus_exclude_each_other() -> None:
    with pytest.raises(fe.ConfigError, match="anneal or lr_decay, not both"):
        fe.fit(model(), lambda epoch: DATA, anneal=0.5, lr_decay=0.1)
