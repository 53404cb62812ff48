"""Row-wise optimizers against torch's own, step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.rows import RowTable, touched_rows, write_rows

ROWS, WIDTH = 30, 6


def table(width: int = WIDTH) -> RowTable:
    return RowTable(ROWS, width, 0.1, torch.Generator().manual_seed(0))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 20, (25,), generator=generator) for _ in range(12)]


def loss_of(vectors: Tensor) -> Tensor:
    return (vectors.tanh() * torch.linspace(-1, 1, vectors.shape[1])).sum() / len(vectors)


def steps(one: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for rows in batches():
        optimizer.zero_grad()
        loss_of(one(rows)).backward()
        optimizer.step()


class Sparse(nn.Module):
    """torch's own embedding with sparse gradients."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.inner = nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=True)

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(rows)


def test_row_adam_is_sparse_adam() -> None:
    ours = table()
    theirs = Sparse(ours.weight.detach())
    # the two place eps differently beside the bias correction: make it vanish
    steps(ours, optim.RowAdam(ours.parameters(), lr=0.02, eps=1e-20))
    steps(theirs, torch.optim.SparseAdam(list(theirs.parameters()), lr=0.02, eps=1e-20))
    assert torch.allclose(ours.weight, theirs.inner.weight, atol=1e-6)


def test_row_adagrad_is_adagrad() -> None:
    ours = table()
    theirs = nn.Embedding.from_pretrained(ours.weight.detach().clone(), freeze=False)
    steps(ours, optim.RowAdagrad(ours.parameters(), lr=0.05))
    steps(theirs, torch.optim.Adagrad(theirs.parameters(), lr=0.05))
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_rowwise_adagrad_is_its_formula() -> None:
    ours = table()
    weight, total = ours.weight.detach().clone(), torch.zeros(ROWS, 1)
    optimizer = optim.RowAdagrad(ours.parameters(), lr=0.05, rowwise=True)
    steps(ours, optimizer)
    for rows in batches():
        weight.requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(weight[rows]), weight)
        total += grad.square().mean(1, keepdim=True)
        weight = weight.detach() - 0.05 * grad / (total.sqrt() + 1e-10)
    assert torch.allclose(ours.weight, weight, atol=1e-6)
    assert optimizer.state[ours.weight]["sum"].shape == (ROWS, 1)


def test_row_sgd_is_sgd_on_read_rows() -> None:
    ours = table()
    theirs = nn.Embedding.from_pretrained(ours.weight.detach().clone(), freeze=False)
    steps(ours, optim.RowSGD(ours.parameters(), lr=0.1))
    steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1))
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_dense_adam_is_adam_over_the_whole_table(decoupled: bool) -> None:
    ours = table()
    theirs = nn.Embedding.from_pretrained(ours.weight.detach().clone(), freeze=False)
    settings = {"lr": 0.02, "weight_decay": 0.1}
    steps(ours, optim.DenseAdam(ours.parameters(), decoupled=decoupled, **settings))
    peer = torch.optim.AdamW if decoupled else torch.optim.Adam
    steps(theirs, peer(theirs.parameters(), **settings))
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


@pytest.mark.parametrize("name", ["row_adam", "row_adagrad", "row_sgd"])
def test_rows_that_are_not_read_do_not_change(name: str) -> None:
    ours = table()
    before = ours.weight.detach().clone()
    settings = {"lr": 0.1, "weight_decay": 0.01}
    steps(ours, optim.OPTIMIZERS[name](ours.parameters(), **settings))
    assert torch.equal(ours.weight[20:], before[20:])
    assert not torch.equal(ours.weight[:20], before[:20])


def test_row_adam_on_ordinary_parameters_is_adam() -> None:
    ours = nn.Linear(WIDTH, 3)
    theirs = copy.deepcopy(ours)
    data = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(2))
    for net, optimizer in (
        (ours, optim.RowAdam(ours.parameters(), lr=0.01, weight_decay=0.1)),
        (theirs, torch.optim.Adam(theirs.parameters(), lr=0.01, weight_decay=0.1)),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            net(data).square().sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_gradients_add_up_over_lookups_and_backward_passes() -> None:
    ours, dense = table(), table()
    optim.RowAdam(ours.parameters())
    for one in (ours, dense):
        for rows in batches()[:2]:
            (loss_of(one(rows)) + loss_of(one(rows.flip(0)[:7]))).backward()
    rows, values = touched_rows(ours.weight.grad)
    assert torch.equal(rows, rows.unique())
    assert torch.allclose(ours.weight.grad.to_dense(), dense.weight.grad, atol=1e-6)
    assert torch.allclose(values, dense.weight.grad[rows], atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_write_rows_is_index_copy(width: int, dtype: torch.dtype) -> None:
    target = torch.randn(50, width, dtype=dtype)
    rows, values = torch.tensor([3, 49, 0, 17]), torch.randn(4, width, dtype=dtype)
    wanted = target.clone().index_copy_(0, rows, values)
    write_rows(target, rows, values)
    assert torch.equal(target, wanted)


def test_a_group_names_its_own_optimizer() -> None:
    layer = fe.embedding(fe.Schema([fe.Feature("a", 5)]), "full", dim=4)
    layer.param_groups = lambda lr: [  # type: ignore[method-assign]
        {"params": list(layer.parameters()), "lr": 0.5, "optimizer": "row_sgd"}
    ]
    model = nn.Sequential(layer, nn.Linear(4, 1))
    made = {type(one).__name__: one for one in optim.build(model, lr=0.01, weight_decay=0.25)}
    assert set(made) == {"RowAdam", "RowSGD"}
    assert made["RowSGD"].param_groups[0]["lr"] == 0.5
    assert made["RowSGD"].param_groups[0]["weight_decay"] == 0.25
    assert made["RowAdam"].param_groups[0]["weight_decay"] == 0.0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(fe.ConfigError, match="lr must be >= 0, got -1"):
        optim.RowAdam(table().parameters(), lr=-1)
    layer = fe.embedding(fe.Schema([fe.Feature("a", 5)]), "full", dim=4)
    with pytest.raises(fe.ConfigError, match="row_adam"):
        optim.build(layer, lr=0.1, optimizer="row_adamm")


@pytest.mark.filterwarnings("ignore")  # torch's tracer warns of itself
def test_compiled_training_equals_eager() -> None:
    def train(compiled: bool) -> Tensor:
        layer = fe.embedding(fe.Schema([fe.Feature("a", 50)]), "unified(lookups=2)", ratio=2)
        run = torch.compile(layer, backend="aot_eager") if compiled else layer
        optimizer = optim.RowAdam(layer.parameters(), lr=0.02)
        for rows in batches()[:4]:
            optimizer.zero_grad()
            loss_of(run(rows[:, None])).backward()
            assert layer.source.rows.weight.grad.is_sparse
            optimizer.step()
        return layer.source.rows.weight.detach()

    assert torch.equal(train(compiled=True), train(compiled=False))
