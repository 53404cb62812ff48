"""PEP's soft thresholds, against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import featemb as fe
from featemb.check.case import SINGLE, single_ids


@pytest.mark.parametrize("grain", ["global", "dimension", "row", "weight"])
def test_pep_thresholds_get_the_gradient_of_the_formula(grain: str) -> None:
    layer = fe.embedding(SINGLE, f"pep(grain={grain}, threshold=-4.0)", dim=8, seed=3)
    ids = single_ids(16)
    reader = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
    (layer(ids) * reader).sum().backward()
    offsets = torch.tensor([0, *SINGLE.cardinalities[:-1]]).cumsum(0)
    rows = ids + offsets
    v = layer.weight.detach()[rows]
    sigma = 1 / (1 + np.exp(4.0))
    upstream = reader.view(16, 4, 8)
    alive = v.abs() > sigma
    each = torch.where(alive, -torch.sign(v) * sigma * (1 - sigma) * upstream, 0.0)
    whole = torch.zeros(sum(SINGLE.cardinalities), 8)
    whole.index_put_((rows,), each, accumulate=True)
    wanted = {
        "global": whole.sum().view(1, 1),
        "dimension": whole.sum(0, keepdim=True),
        "row": whole.sum(1, keepdim=True),
        "weight": whole,
    }[grain]
    found = layer.soft.thresholds.weight.grad
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.abs().max() > 1e-3
    table = torch.zeros_like(whole)
    table.index_put_((rows,), torch.where(alive, upstream, 0.0), accumulate=True)
    assert torch.allclose(layer.weight.grad, table, atol=1e-6)


def test_pep_serves_the_numbers_furthest_above_their_thresholds() -> None:
    layer = fe.embedding(SINGLE, "pep(kept=200, init=0.5)", dim=8, seed=3)
    logits = layer.soft.thresholds.weight.data.uniform_(-6, 0).numpy()
    v = layer.weight.detach().numpy()
    soft = np.abs(v) - 1 / (1 + np.exp(-logits.astype(np.float64)))
    best = np.argsort(-soft, axis=None)[:200]
    assert set(best) != set(np.argsort(-np.abs(v), axis=None)[:200])
    table = np.zeros(v.shape)
    table.flat[best] = np.sign(v.flat[best]) * np.maximum(soft.flat[best], 0)
    offsets = np.cumsum([0, *SINGLE.cardinalities[:-1]])
    ids = single_ids()
    served = layer.eval()(ids)
    assert np.allclose(served.detach(), table[ids.numpy() + offsets].reshape(64, -1), atol=1e-6)
    assert torch.equal(served, layer.freeze()(ids))
