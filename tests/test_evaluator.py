"""`Evaluator`: variants scored in one pass are those scored one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb.check.case import BAGS, SINGLE, bags, single_ids
from featemb.evaluator import Scorer
from featemb.layer import BuildContext, PartsEmbedding
from featemb.methods.full import Full
from featemb.parts import Concat, Lookup, OffsetAddress

MASKS = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0.5, 2]])


class Forms(PartsEmbedding):
    """A table that answers a batch of ``V B`` samples by V masks of its features."""

    def __init__(self, schema: fe.Schema = SINGLE) -> None:
        context = BuildContext(schema, 3, 0, torch.device("cpu"))
        source = Lookup(
            address=OffsetAddress.of(schema.cardinalities),
            rows=context.table(sum(schema.cardinalities), 3, 0.5),
            combine=Concat(),
        )
        super().__init__(context, Full(), source)
        self.masks = torch.ones(1, schema.num_features)

    def forward_single(self, ids: Tensor) -> Tensor:
        vectors = super().forward_single(ids)
        forms = vectors.view(len(self.masks), -1, *vectors.shape[1:]) * self.masks[:, None, :, None]
        return forms.view_as(vectors)


@dataclass
class Batch:
    ids: Any
    numeric: Tensor | None
    label: Tensor


class Net(nn.Module):
    """A small network, with two batch normalisations or none."""

    def __init__(self, layer: fe.FeatureEmbedding, norms: bool, affine: bool = True) -> None:
        super().__init__()
        self.layer = layer
        torch.manual_seed(0)
        self.deep = nn.Sequential(
            nn.Linear(sum(layer.widths) + 1, 6),
            nn.BatchNorm1d(6, affine=affine) if norms else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Linear(6, 5),
            nn.BatchNorm1d(5) if norms else nn.Identity(),
            nn.Linear(5, 1),
        )
        for key, tensor in (*self.deep.named_parameters(), *self.deep.named_buffers()):
            if "num" not in key:
                tensor.data.uniform_(0.3, 0.9)

    def forward(self, ids: Any, numeric: Tensor) -> Tensor:
        logits: Tensor = self.deep(torch.cat((self.layer(ids), numeric), 1)).squeeze(1)
        return logits


def data(number: int = 3, size: int = 20, start: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(start)
    return [
        Batch(
            single_ids(size, seed=start + one),
            torch.randn(size, 1, generator=generator),
            (torch.rand(size, generator=generator) < 0.4).float(),
        )
        for one in range(number)
    ]


def score(label: Tensor, logits: Tensor) -> float:
    return -float(nn.functional.binary_cross_entropy_with_logits(logits, label))


def one_by_one(net: Net, evaluator: fe.Evaluator) -> list[float]:
    found = []
    for mask in MASKS:
        net.layer.masks = mask[None]
        found.append(evaluator())
    net.layer.masks = MASKS
    return found


@pytest.mark.parametrize("norms", [False, True])
def test_variants_are_scored_as_one_by_one(norms: bool) -> None:
    net = Net(Forms(), norms).eval()
    evaluator = fe.Evaluator(net, data, score)
    expected = one_by_one(net, evaluator)
    assert evaluator.variants(3) == pytest.approx(expected, abs=1e-6)
    assert len({round(one, 4) for one in expected}) == 3


@pytest.mark.parametrize("affine", [False, True])
def test_variants_are_calibrated_each_by_itself(affine: bool) -> None:
    net = Net(Forms(), norms=True, affine=affine).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluator = fe.Evaluator(net, data, score, lambda: data(4, 16, start=50))
    found = []
    for mask in MASKS:
        net.layer.masks = mask[None]
        found.append(recalibrated(net))
    net.layer.masks = MASKS
    assert evaluator.variants(3) == pytest.approx(found, abs=1e-5)
    net.layer.masks = MASKS[1:2]
    assert evaluator.variants(1) == pytest.approx(found[1:2], abs=1e-5)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any("forward" in vars(module) for module in net.modules())


def recalibrated(net: Net) -> float:
    """Score a network whose running statistics are the means over the calibration batches'."""
    deep, numbers = net.deep, data(4, 16, start=50)
    inputs = [torch.cat((net.layer(one.ids), one.numeric), 1) for one in numbers]
    moments: dict[int, tuple[Tensor, Tensor]] = {}

    def run(values: Tensor, until: int, alone: bool) -> Tensor:
        for place, module in enumerate(deep[:until]):
            if isinstance(module, nn.BatchNorm1d):
                mean, variance = (
                    (values.mean(0), values.var(0, correction=0)) if alone else moments[place]
                )
                values = (values - mean) / torch.sqrt(variance + module.eps)
                if module.weight is not None:
                    values = values * module.weight + module.bias
            else:
                values = torch.relu(values) if isinstance(module, nn.ReLU) else module(values)
        return values

    for place, module in enumerate(deep):
        if isinstance(module, nn.BatchNorm1d):
            before = [run(one, place, alone=True) for one in inputs]
            mean = torch.stack([one.mean(0) for one in before]).mean(0)
            variance = torch.stack([one.var(0, correction=0) for one in before]).mean(0)
            moments[place] = (mean, variance)
    valid = data()
    logits = [run(torch.cat((net.layer(b.ids), b.numeric), 1), 6, alone=False) for b in valid]
    return score(torch.cat([b.label for b in valid]), torch.cat(logits)[:, 0].detach())


def test_bags_are_refused() -> None:
    layer = fe.embedding(BAGS, "full", dim=3)
    net = Net(layer, norms=False).eval()
    batch = Batch(bags(), torch.randn(9, 1), torch.ones(9))
    evaluator = fe.Evaluator(net, lambda: [batch], score)
    assert evaluator.variants(1) == [evaluator()]
    with pytest.raises(fe.RunError, match="dense ids only; score one by one"):
        evaluator.variants(2)


def test_norms_come_back_after_an_error() -> None:
    net = Net(Forms(), norms=True).eval()

    def broken() -> list[Batch]:
        raise OSError

    with pytest.raises(OSError):
        fe.Evaluator(net, data, score, broken).variants(2)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_scorer_keeps_the_mode_and_passes_variants_on() -> None:
    net = Net(Forms(), norms=True).train()
    net.layer.masks = MASKS
    scorer = Scorer(net, fe.Evaluator(net, data, score))
    found = scorer.variants(3)
    assert net.training
    assert found == fe.Evaluator(net.eval(), data, score).variants(3)
    assert scorer.seconds > 0
    assert not hasattr(Scorer(net, lambda: 0.5), "variants")
    assert Scorer(net, lambda: 0.5)() == 0.5
    assert not net.training
