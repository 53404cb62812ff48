"""The models' formulas against plain loops, and their gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from model_cases import EMBEDDINGS, VARIANTS, batch, small_net
from torch import Tensor, nn
from torch.func import functional_call

from featemb.models.fields import _Sums

every_embedding = pytest.mark.parametrize("kind", EMBEDDINGS)
every_variant = pytest.mark.parametrize(("name", "config"), VARIANTS)


def affine(layer: nn.Module, x: list[float]) -> list[float]:
    assert isinstance(layer, nn.Linear)
    rows = layer.weight.tolist()
    bias = [0.0] * len(rows) if layer.bias is None else layer.bias.tolist()
    return [
        b + sum(w * v for w, v in zip(row, x, strict=True))
        for row, b in zip(rows, bias, strict=True)
    ]


def slow_mlp(layers: nn.Module, x: list[float]) -> list[float]:
    for layer in layers.children():
        if isinstance(layer, nn.Linear):
            x = affine(layer, x)
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            state = zip(
                x,
                layer.running_mean.tolist(),
                layer.running_var.tolist(),
                layer.weight.tolist(),
                layer.bias.tolist(),
                strict=True,
            )
            x = [(v - mean) / (var + layer.eps) ** 0.5 * w + b for v, mean, var, w, b in state]
        else:
            assert isinstance(layer, nn.ReLU)
            x = [max(v, 0.0) for v in x]
    return x


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def slow_fields(net: Any, vector: list[float]) -> list[list[float]]:
    fields, start = [], 0
    for width in net.embedding.widths:
        field = vector[start : start + width]
        start += width
        narrow = width < max(net.embedding.widths)
        fields.append(affine(net.equal.maps[str(width)], field) if narrow else field)
    return fields


def slow_first(net: Any, vector: list[float], x: list[float]) -> float:
    weight = net.first_order.weight
    linear = dot(weight.tolist(), x) if x else 0.0
    return float(net.first_order.bias.item() + sum(vector) + linear)


def slow_pairs(net: Any, vector: list[float], x: list[float]) -> float:
    fields = slow_fields(net, vector)
    for j, value in enumerate(x):
        fields.append([value * v for v in net.pairwise.weight[j].tolist()])
    return sum(dot(a, b) for a, b in itertools.combinations(fields, 2))


def slow_lr(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    return slow_first(net, e, x)


def slow_fm(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    return slow_first(net, w, x) + slow_pairs(net, e, x)


def slow_deepfm(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    return slow_fm(net, e, w, x) + slow_mlp(net.mlp.layers, e + x)[0]


def slow_widedeep(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    return slow_first(net, w, x) + slow_mlp(net.mlp.layers, e + x)[0]


def slow_dcnv2(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    start = e + x
    crossed = start
    for layer in net.cross.layers:
        inner = crossed
        for step in [layer] if isinstance(layer, nn.Linear) else layer:
            inner = affine(step, inner)
        crossed = [a * b + c for a, b, c in zip(start, inner, crossed, strict=True)]
    if net.config.structure == "stacked":
        return slow_mlp(net.mlp.layers, crossed)[0]
    return affine(net.output, crossed)[0] + slow_mlp(net.mlp.layers, start)[0]


def slow_dlrm(net: Any, e: list[float], w: list[float], x: list[float]) -> float:
    fields = slow_fields(net, e)
    dense = slow_mlp(net.bottom, x) if x else []
    fields = [dense, *fields] if x else fields
    products = [dot(fields[i], fields[j]) for i in range(len(fields)) for j in range(i)]
    return slow_mlp(net.mlp.layers, dense + products)[0]


FORMULAS = {
    "lr": slow_lr,
    "fm": slow_fm,
    "deepfm": slow_deepfm,
    "widedeep": slow_widedeep,
    "dcnv2": slow_dcnv2,
    "dlrm": slow_dlrm,
}


@every_variant
@every_embedding
@pytest.mark.parametrize("numeric", [0, 2])
def test_formula(name: str, config: dict[str, Any], kind: str, numeric: int) -> None:
    net = small_net(name, kind, numeric, **config).double().eval()
    ids, values = batch()
    values = values.double()
    logits = net(ids, values) if numeric else net(ids)
    assert logits.dtype == torch.float64
    vectors = net.embedding(ids).tolist()
    wide = net.embeddings()[-1](ids).tolist()  # the companion, where there is one
    inputs = values.tolist() if numeric else [[]] * len(ids)
    expected = [FORMULAS[name](net, e, w, x) for e, w, x in zip(vectors, wide, inputs, strict=True)]
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64))


@every_variant
@every_embedding
def test_gradcheck(name: str, config: dict[str, Any], kind: str) -> None:
    net = small_net(name, kind, **config).double().eval()
    ids, values = batch(3)
    parameters = dict(net.named_parameters())

    def call(numeric: Tensor, *tensors: Tensor) -> Tensor:
        logits: Tensor = functional_call(
            net, dict(zip(parameters, tensors, strict=True)), (ids, numeric)
        )
        return logits

    numeric = values.double().requires_grad_()
    assert torch.autograd.gradcheck(call, (numeric, *parameters.values()), fast_mode=True)


def test_the_sums_of_the_fm_term_have_both_gradients() -> None:
    fields = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Sums.apply, (fields,))
    assert torch.autograd.gradgradcheck(_Sums.apply, (fields,))


def test_the_sums_of_the_fm_term_are_those_without_a_gradient() -> None:
    fields = torch.randn(50, 3, 4, requires_grad=True)
    plain = fields.sum(1), fields.square().sum((1, 2))
    made = _Sums.apply(fields)
    assert all(torch.equal(*pair) for pair in zip(plain, made, strict=True))
    weights = torch.randn(50, 4), torch.randn(50)
    found = torch.autograd.grad(made, fields, weights)[0]
    torch.testing.assert_close(found, torch.autograd.grad(plain, fields, weights)[0])
