"""Rows under FBGEMM's kernels: the numbers of featemb's own, and what cannot be."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.check.case import BAGS, LinearReader, bags, mean_loss, single_ids, task
from featemb.fbgemm import optimizers
from featemb.fbgemm.choice import kernel_of
from featemb.fbgemm.rows import FbgemmRows
from featemb.memory import tensor_bytes
from featemb.rows import RowTable

pytest.importorskip("fbgemm_gpu")

OPTIMIZERS = {"row_sgd": 0.5, "row_adagrad": 0.05, "rowwise_adagrad": 0.05}
METHODS = ("full", "hash", "unified(lookups=2)", "qr", "mde")
ALSO = ("multi_hash", "double_hash", "frequency", "lowdim", "memcom", "robe", "adapt")
SMALL = fe.Schema([fe.Feature("user", 400), fe.Feature("item", 90)])
Optimizers = Sequence[torch.optim.Optimizer]


def pair(spec: str, dim: int = 6, device: str = "cpu", **options: Any) -> list[fe.FeatureEmbedding]:
    """The same layer under torch's kernels and under FBGEMM's."""
    made = [fe.embedding(SMALL, spec, dim=dim, seed=3, **options).to(device) for _ in range(2)]
    return [fe.use_kernel(made[0], "torch"), fe.use_kernel(made[1], "fbgemm")]


def some_ids(step: int, batch: int = 48) -> Tensor:
    """Random ids, a third of which stand there twice."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.stack([torch.randint(0, n, (batch,), generator=generator) for n in (400, 90)], 1)
    ids[: batch // 3] = ids[batch // 3 : batch // 3 * 2]
    return ids


def step(layer: nn.Module, optimizers: Optimizers, ids: Any) -> Tensor:
    """Move the outputs towards fixed targets; return the outputs."""
    layer.zero_grad()
    out: Tensor = layer(ids)
    targets = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    (10 * (out - targets).square().mean()).backward()
    for one in optimizers:
        one.step()
    return out.detach()


def difference(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of two state dicts of the same names."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def train_both(layers: list[fe.FeatureEmbedding], name: str, steps: int = 20) -> list[Optimizers]:
    """Train two layers alike, and hold every output against the other's."""
    optimizers = [fe.optim.build(layer, OPTIMIZERS[name], name) for layer in layers]
    for number in range(steps):
        pairs = zip(layers, optimizers, strict=True)
        ours, theirs = (step(layer, own, some_ids(number)) for layer, own in pairs)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    return optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("spec", METHODS)
def test_outputs_and_rows_are_those_of_the_lazy_optimizers(spec: str, name: str) -> None:
    layers = pair(spec)
    before = copy.deepcopy(layers[1])
    optimizers = train_both(layers, name)
    assert sum(type(one).__name__ == "FbgemmSteps" for one in optimizers[1]) >= 1
    assert difference(*layers) <= 1e-5
    assert difference(before, layers[1]) > 0.05
    frozen = [layer.freeze("int8")(some_ids(99)) for layer in layers]
    assert torch.allclose(*frozen, rtol=0, atol=1e-2)


@pytest.mark.parametrize("spec", ALSO)
def test_every_method_that_reads_rows_by_number(spec: str) -> None:
    layers = pair(spec, dim=16)
    train_both(layers, "rowwise_adagrad", steps=5)
    assert difference(*layers) <= 1e-5


def test_first_order_companions_and_several_layers_of_a_model() -> None:
    nets = [fe.models.build("deepfm", embedding=layer, hidden=(8,)) for layer in pair("full", 8)]
    assert kernel_of(nets[1]) == "fbgemm"
    fe.use_kernel(nets[1], "fbgemm")
    tables = [one for one in nets[1].modules() if isinstance(one, FbgemmRows)]
    assert sorted(table.weight.shape[1] for table in tables) == [1, 8]
    losses = []
    for net in nets:
        net.eval()  # no dropout
        own = fe.optim.build(net, 0.05, "row_adagrad")
        losses.append(torch.stack([step(net, own, some_ids(number)) for number in range(8)]))
    assert torch.allclose(*losses, rtol=0, atol=1e-5)
    assert difference(*nets) <= 1e-5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bags_with_empty_ones(name: str) -> None:
    layers = [fe.embedding(BAGS, "unified(lookups=2)", dim=6, ratio=2) for _ in range(2)]
    fe.use_kernel(layers[1], "fbgemm")
    for layer in layers:
        own = fe.optim.build(layer, OPTIMIZERS[name], name)
        for number in range(6):
            step(layer, own, bags(seed=number))
    assert difference(*layers) <= 1e-5


def test_a_batch_that_reads_no_row_changes_nothing() -> None:
    schema = fe.Schema([fe.Feature("tags", 30, multi=True, pooling="sum")])
    layer = fe.use_kernel(fe.embedding(schema, "full", dim=4), "fbgemm")
    own = fe.optim.build(layer, 0.1, "row_adagrad")
    none = fe.Jagged(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    before = copy.deepcopy(layer.state_dict())
    step(layer, own, none)
    assert torch.equal(layer.state_dict()["source.rows.weight"], before["source.rows.weight"])
    step(layer, own, fe.Jagged(torch.tensor([3, 3]), torch.tensor([1, 0, 1])))
    assert difference(layer, layer) == 0.0
    changed = layer.state_dict()["source.rows.weight"] != before["source.rows.weight"]
    assert changed.any(1).nonzero().tolist() == [[3]]


def test_gradients_of_several_reads_make_one_step() -> None:
    layers = pair("qr")
    for layer in layers:
        own = fe.optim.build(layer, 0.05, "row_adagrad")
        for number in range(4):
            layer.zero_grad()
            (layer(some_ids(number)) - layer(some_ids(number + 1)) * 2).square().sum().backward()
            layer(some_ids(number + 2)).sum().backward()
            layer(some_ids(number + 3))  # read, and no gradient of it
            for one in own:
                one.step()
        layer.zero_grad()
        layer(some_ids(0)).sum().backward()
        layer.zero_grad()
        step(layer, own, some_ids(5))
    assert difference(*layers) <= 1e-5


def test_rates_that_change_reach_the_kernel() -> None:
    layers = pair("unified(lookups=2)")
    for layer in layers:
        own = fe.optim.build(layer, 0.1, "row_adagrad")
        schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in own]
        for number in range(6):
            step(layer, own, some_ids(number))
            for schedule in schedules:
                schedule.step()
    assert difference(*layers) <= 1e-5


DATA = task(6, batch=48)


def fitted(kernel: str, scores: Iterator[float] | None = None, **options: Any) -> Any:
    """Fit a linear reader over a layer; return it and its history."""
    torch.manual_seed(0)
    layer = fe.check.Case("unified(lookups=2)", dim=6).layer(ratio=2)
    net = fe.use_kernel(LinearReader(layer), kernel)
    how = {"epochs": 4, "lr": 0.1, "optimizer": "row_adagrad"} | options
    evaluate = lambda: -mean_loss(net, DATA) if scores is None else next(scores)  # noqa: E731
    return net, fe.fit(net, lambda epoch: DATA, evaluate, patience=9, **how)


@pytest.mark.parametrize("how", [{"lr_decay": 0.3}, {"anneal": 0.5}, {"optimizer": "row_sgd"}])
def test_fit_gives_the_same_weights(how: dict[str, Any]) -> None:
    rising_late = (0.5, 0.4, 0.3, 0.6)
    ours, mine = fitted("torch", iter(rising_late), **how)
    theirs, their = fitted("fbgemm", iter(rising_late), **how)
    assert difference(ours, theirs) <= 1e-5
    losses = [[one["train_loss"] for one in history.records] for history in (mine, their)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 10

    whole, history = fitted("fbgemm", optimizer=optimizer)
    file = tmp_path / "run.pt"
    with pytest.raises(fe.Stopped):
        fitted("fbgemm", optimizer=optimizer, checkpoint=file, stop=stop)
    resumed, again = fitted("fbgemm", optimizer=optimizer, checkpoint=file)
    assert asked == 10
    assert difference(whole, resumed) == 0.0
    assert [one["train_loss"] for one in again.records] == [
        one["train_loss"] for one in history.records
    ]


def test_a_checkpoint_of_the_other_kernel_is_refused(tmp_path: Path) -> None:
    for first, second in (("torch", "fbgemm"), ("fbgemm", "torch")):
        file = tmp_path / first
        with pytest.raises(fe.Stopped):
            fitted(first, checkpoint=file, stop=lambda: True)
        with pytest.raises(fe.FormatError, match=f"kernel was '{first}' and is '{second}' now"):
            fitted(second, checkpoint=file)


def test_weights_trained_with_one_kernel_load_into_the_other() -> None:
    ours, theirs = pair("mde", dim=6)
    own = fe.optim.build(theirs, 0.05, "row_adagrad")
    step(theirs, own, some_ids(0))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.eval()(some_ids(1)), theirs.eval()(some_ids(1)))
    assert torch.equal(ours.freeze()(some_ids(1)), theirs.freeze()(some_ids(1)))
    fresh = pair("mde", dim=6)[1]
    fresh.load_state_dict(ours.state_dict(), assign=True)
    for layer in (fresh, theirs):
        step(layer.train(), fe.optim.build(layer, 0.05, "row_adagrad"), some_ids(2))
    assert difference(fresh, theirs) == 0.0
    plain = fe.use_kernel(theirs, "torch")
    assert kernel_of(plain) == "torch"
    assert all(type(one) is RowTable for one in plain.modules() if isinstance(one, RowTable))
    assert difference(fresh, plain) == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_is_what_is_allocated(name: str) -> None:
    ours, theirs = pair("qr", dim=6)
    assert theirs.memory().parts == ours.memory().parts
    own = fe.optim.build(theirs, 0.1, name)
    held, tables = 0, [one for one in theirs.modules() if isinstance(one, FbgemmRows)]
    for table in tables:
        assert table.engine is not None
        kernel = table.engine.kernel
        held += sum(tensor_bytes(one) for one in (*kernel.parameters(), *kernel.buffers()))
        assert table.weight.untyped_storage().data_ptr() == kernel.weights_host.data_ptr()
        assert table.weight.untyped_storage().nbytes() == tensor_bytes(kernel.weights_host)
    memory = theirs.memory(own)
    assert memory.training == held
    assert memory.training_parts["padding"] == sum(2 * 4 * len(one.weight) for one in tables)
    assert memory.parts == ours.memory().parts
    rows = sum(len(one.weight) for one in tables)
    numbers = {"row_sgd": 0, "row_adagrad": 8, "rowwise_adagrad": 1}[name]
    assert memory.training_parts.get("optimizer state", 0) == 4 * numbers * rows


def test_the_state_is_free_when_the_optimizer_is() -> None:
    layer = pair("full")[1]
    own = fe.optim.build(layer, 0.1, "row_adagrad")
    table = next(one for one in layer.modules() if isinstance(one, FbgemmRows))
    step(layer, own, some_ids(0))
    assert table.engine is not None
    del own
    assert table.engine is None
    layer(some_ids(0)).sum().backward()


def test_copies_are_apart() -> None:
    layer = pair("full")[1]
    own = fe.optim.build(layer, 0.1, "row_adagrad")
    copied = copy.deepcopy(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    step(layer, own, some_ids(0))
    assert difference(copied, read) == 0.0
    assert difference(copied, layer) > 0
    for other in (copied, read):
        assert kernel_of(other) == "fbgemm"
        step(other, fe.optim.build(other, 0.1, "row_adagrad"), some_ids(0))
        assert difference(other, layer) == 0.0


def test_a_row_optimizer_of_ones_own_steps_the_rows_too() -> None:
    layers = pair("full")
    for layer in layers:
        own = [fe.optim.RowAdam(layer.parameters(), lr=0.1)]
        for number in range(3):
            step(layer, own, some_ids(number))
    assert difference(*layers) == 0.0


@pytest.mark.filterwarnings("ignore")  # torch's tracer warns of itself
def test_compiled_training_equals_eager() -> None:
    trained = []
    for compiled in (False, True):
        layer = pair("hash")[1]
        own = fe.optim.build(layer, 0.1, "row_adagrad")
        run = torch.compile(layer, backend="aot_eager") if compiled else layer
        for number in range(2):
            layer.zero_grad()
            run(some_ids(number)).square().sum().backward()
            own[0].step()
        trained.append(layer)
    assert difference(*trained) == 0.0


@pytest.mark.parametrize("name", ["row_adam", "row_rmsprop", "dense_adam"])
def test_optimizers_that_the_kernel_lacks_are_refused(name: str) -> None:
    allowed = "Allowed: row_sgd, row_adagrad, rowwise_adagrad$"
    with pytest.raises(fe.ConfigError, match=f"no optimizer '{name}' on cpu; {allowed}"):
        fe.optim.build(pair("full")[1], 0.1, name)


def test_weight_decay_is_refused() -> None:
    with pytest.raises(fe.ConfigError, match=r"no weight decay .* weight_decay=0\.01"):
        fe.optim.build(pair("full")[1], 0.1, "row_adagrad", weight_decay=0.01)


@pytest.mark.parametrize(
    ("spec", "reason"),
    {
        "cafe": "cafe: .*training does more than to step rows .*after_step",
        "deeplight": "deeplight: part MaskedRows",
        "lowprec": "lowprec: .*form of its own",
        "optembed": "optembed: .*after its search",
        "pca": "pca: .*begin_stage, search",
        "dhe": "dhe: it has no table of rows",
    }.items(),
)
def test_methods_that_need_more_say_why_not(spec: str, reason: str) -> None:
    layer = fe.embedding(SMALL, spec, dim=16)
    with pytest.raises(
        fe.ConfigError, match="the kernel 'fbgemm' cannot train the rows: " + reason
    ):
        fe.use_kernel(layer, "fbgemm")
    assert kernel_of(layer) == "torch"


def unloadable(name: str) -> None:
    raise OSError("x")


def test_what_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fe.embedding(SMALL, "full", dim=6)
    with pytest.raises(fe.ConfigError, match="unknown kernel 'fbgem'; did you mean 'fbgemm'"):
        fe.use_kernel(layer, "fbgem")
    with pytest.raises(fe.ConfigError, match=r"holds no featemb\.FeatureEmbedding"):
        fe.use_kernel(nn.Linear(2, 2), "fbgemm")
    with pytest.raises(fe.ConfigError, match="not made yet"):
        fe.use_kernel(fe.embedding(SMALL, "full", dim=6, device="meta"), "fbgemm")
    with pytest.raises(fe.ConfigError, match=r"rows in torch\.float32, not torch\.float16"):
        fe.use_kernel(layer, "fbgemm").half()
    own = fe.optim.build(layer, 0.1, "row_adagrad")
    layer.get_parameter("source.rows.weight").square().sum().backward()
    with pytest.raises(fe.RunError, match="a gradient of all its rows"):
        own[0].step()
    with pytest.raises(ValueError, match="the rows have the state"):
        own[0].load_state_dict(fe.optim.build(layer, 0.1, "rowwise_adagrad")[0].state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(optimizers, "import_module", unloadable)
        with pytest.raises(fe.ConfigError, match=r"cannot be loaded \(x\): install it"):
            fe.use_kernel(layer, "fbgemm")
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(fe.ConfigError, match=r"needs FBGEMM: .*featemb\[gpu\]"):
        fe.use_kernel(layer, "fbgemm")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*OPTIMIZERS, "row_adam"])
@pytest.mark.parametrize("spec", METHODS)
def test_the_same_on_the_device(spec: str, name: str) -> None:
    layers = pair(spec, device="cuda")
    rate = OPTIMIZERS.get(name, 0.01)
    for layer in layers:
        own = fe.optim.build(layer, rate, name)
        for number in range(20):
            step(layer, own, some_ids(number).cuda())
    assert difference(*layers) <= 1e-4


@pytest.mark.gpu
def test_a_table_is_moved_before_it_is_trained() -> None:
    here = fe.use_kernel(fe.embedding(SMALL, "full", dim=6), "fbgemm")
    there = copy.deepcopy(here).to("cuda")
    assert torch.equal(
        there(single_ids(8, schema=SMALL).cuda()).cpu(), here(single_ids(8, schema=SMALL))
    )
    fe.optim.build(there, 0.1, "row_adam")
    with pytest.raises(fe.ConfigError, match="before its optimizers are made"):
        there.cpu()
