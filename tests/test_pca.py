"""Widths by principal components: spectra, shares, scores and stages, against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import featemb as fe
from featemb import staging
from featemb.check.case import LinearReader, task
from featemb.methods.pca import PCAEmbedding

DIM = 6
CARDINALITIES = (200, 60, 30, 3)


def schema_of(counted: bool) -> fe.Schema:
    counts = [np.arange(n) % 17 if counted and n > 30 else None for n in CARDINALITIES]
    return fe.Schema(
        fe.Feature(f"f{i}", n, counts=c)
        for i, (n, c) in enumerate(zip(CARDINALITIES, counts, strict=True))
    )


def layer_of(spec: str = "pca(limit=3000)", counted: bool = False) -> PCAEmbedding:
    """A layer whose features have spectra of different decay."""
    layer = fe.embedding(schema_of(counted), spec, dim=DIM)
    assert isinstance(layer, PCAEmbedding)
    generator = torch.Generator().manual_seed(1)
    parts = []
    for number, n in enumerate(CARDINALITIES):
        decay = torch.tensor([0.3 + 0.2 * number]) ** torch.arange(DIM)
        turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
        parts.append(torch.randn(n, DIM, generator=generator) * decay @ turn + 0.1)
    with torch.no_grad():
        layer.source.get_parameter("rows.weight").copy_(torch.cat(parts))
    return layer


def spectra(layer: PCAEmbedding) -> list[np.ndarray]:
    """Shares of the second moments by numpy's singular values, in falling order."""
    found, row = [], 0
    for feature in layer.schema.features:
        table = layer.source.get_parameter("rows.weight")[row : row + feature.cardinality]
        row += feature.cardinality
        weight = np.ones(len(table)) if feature.counts is None else feature.counts
        rows = table.detach().double().numpy() * np.sqrt(weight)[:, None]
        variance = np.zeros(DIM)
        values = np.linalg.svd(rows, compute_uv=False) ** 2
        variance[: len(values)] = values
        found.append(variance / variance.sum())
    return found


def find(layer: PCAEmbedding) -> None:
    staging.search(layer, layer.stages()[1], lambda: 0.0)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("share", [0.8, 0.9, 0.95, 0.999])
def test_a_share_takes_the_components_that_hold_it(share: float, counted: bool) -> None:
    layer = layer_of(f"pca(share={share}, limit=99999)", counted)
    find(layer)
    wanted = [int((held.cumsum() < share).sum()) + 1 for held in spectra(layer)]
    wanted = [layer.size.real(f, min(w, DIM)) for f, w in enumerate(wanted)]
    assert layer.found[:4].tolist() == wanted


@pytest.mark.parametrize("limit", [1800, 2500, 3500, 5000])
def test_a_limit_holds_the_same_share_everywhere(limit: int) -> None:
    layer = layer_of(f"pca(limit={limit})", counted=True)
    find(layer)
    widths = layer.found[:4].tolist()
    held = spectra(layer)
    # the next component of every feature begins at a share that no used one lies above
    used = [h.cumsum()[w - 2] if w > 1 else 0.0 for h, w in zip(held, widths, strict=True)]
    following = [h.cumsum()[w - 1] for h, w in zip(held, widths, strict=True) if w < DIM]
    whole = [w == DIM for w in widths]  # where a projection costs too much
    reached = max(u for u, every in zip(used, whole, strict=True) if not every)
    assert reached <= min(following) + 1e-9
    assert limit - 4 * (DIM + 1) < layer.freeze().memory().serving <= limit


@pytest.mark.parametrize("counted", [False, True])
def test_the_frozen_copy_is_the_best_approximation(counted: bool) -> None:
    layer = layer_of("pca(share=0.9, limit=99999)", counted).eval()
    find(layer)
    widths = layer.found[:4].tolist()
    ids = torch.stack([torch.arange(200) % n for n in CARDINALITIES], 1)
    full, frozen = layer.eval()(ids).view(-1, 4, DIM), layer.freeze()(ids).view(-1, 4, DIM)
    row = 0
    for f, (feature, width) in enumerate(zip(layer.schema.features, widths, strict=True)):
        table = layer.source.get_parameter("rows.weight")[row : row + feature.cardinality]
        row += feature.cardinality
        weight = np.ones(len(table)) if feature.counts is None else feature.counts
        scaled = table.detach().double().numpy() * np.sqrt(weight)[:, None]
        basis = torch.tensor(np.linalg.svd(scaled, full_matrices=False)[2][:width]).float()
        wanted = full[:, f] @ basis.t() @ basis if width < DIM else full[:, f]
        assert torch.allclose(frozen[:, f], wanted, atol=1e-5)


def test_before_the_search_the_size_is_the_plans() -> None:
    layer = layer_of()
    plan = fe.embedding(schema_of(False), "pca(limit=3000)", dim=DIM, device="meta")
    sizes = [one.memory().serving for one in (layer, plan)]
    stored = layer.freeze().memory().serving
    assert sizes == [stored, stored]
    assert 3000 - 4 < stored <= 3000


def test_random_start_forgets_the_table_and_components_keep_it() -> None:
    for start, kept in (("initial", False), ("components", True)):
        layer = layer_of(f"pca(share=0.97, limit=99999, start={start})").eval()
        ids = torch.stack([torch.arange(200) % n for n in CARDINALITIES], 1)
        before, first = layer(ids), copy.deepcopy(layer.state_dict())
        with torch.no_grad():
            first["source.rows.weight"] = torch.zeros_like(first["source.rows.weight"])
        for stage in layer.stages()[1:]:
            staging.begin(layer, stage, first)
            if stage.kind == "search":
                staging.search(layer, stage, lambda: 0.0)
        assert "source.rows.weight" not in layer.state_dict()
        with torch.no_grad():
            error = float((layer.eval()(ids) - before).square().mean() / before.square().mean())
        assert (error < 0.04) == kept
        assert layer.memory().training < 4 * DIM * sum(CARDINALITIES)


def test_training_ends_within_the_limit() -> None:
    case = fe.check.Case("pca(limit=2600)")
    layer = case.trained()
    assert 2600 - 4 * (case.dim + 1) < layer.memory().serving <= 2600
    again = case.layer(seed=9)
    again.load_state_dict(layer.state_dict())
    back = case.layer()
    again.load_state_dict(back.state_dict())  # narrow, then wide again
    assert set(again.state_dict()) == set(back.state_dict())


def test_no_evaluation_is_needed() -> None:
    model = LinearReader(fe.check.Case("pca(limit=2600)").layer())
    data = task(4)
    fe.fit(model, lambda epoch: data, epochs=1)
    assert model.layer.narrow


@pytest.mark.parametrize(
    ("spec", "message"),
    [("pca(share=1.5)", "share"), ("pca(start=mine)", "start"), ("pca(limit=0)", "limit")],
)
def test_bad_settings_are_named(spec: str, message: str) -> None:
    with pytest.raises(fe.ConfigError, match=message):
        fe.parse(spec)


def test_a_limit_below_the_floor_tells_it() -> None:
    with pytest.raises(fe.BudgetError) as error:
        fe.embedding(schema_of(False), "pca", dim=DIM, budget=100)
    small = 3 * DIM * 4  # of three ids: no projection pays
    assert error.value.floor == 4 * (290 + 3 * DIM) + min(small, 4 * (3 + DIM))
