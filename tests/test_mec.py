"""`mec`: its formula one id at a time, its codes, both forms of the layer, budgets."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb import staging
from featemb.check.case import SINGLE, LinearReader, mean_loss, task
from featemb.fit import fit
from featemb.stage import Stage

SIZES = (301, 42, 3)
SCHEMA = fe.Schema([fe.Feature(name, n) for name, n in zip("abc", SIZES, strict=True)])
IDS = torch.stack([torch.arange(301) % n for n in SIZES], dim=1)
RETRAIN = Stage("retrain")


def made(spec: str, seed: int = 0, schema: fe.Schema = SCHEMA, dim: int = 6) -> fe.FeatureEmbedding:
    return fe.embedding(schema, spec, dim=dim, seed=seed)


def table(layer: fe.FeatureEmbedding) -> Tensor:
    return layer.source.rows.weight.detach().clone()


def plain_codes(layer: fe.FeatureEmbedding, group: int, count: int) -> list[int]:
    codes = layer.source.address.codes
    words = [int(word) & 0xFFFFFFFF for word in codes.words]
    first, bits = 32 * codes.starts[group], codes.bits[group]
    every = [words[b // 32] >> b % 32 & 1 for b in range(first, first + count * bits)]
    return [sum(every[i * bits + b] << b for b in range(bits)) for i in range(count)]


@pytest.mark.parametrize(("parts", "used"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 6)])
def test_it_is_its_formula(parts: int, used: int) -> None:
    """Codebooks of a, codebooks of b, then the private rows of c, all cut into M parts."""
    layer = made(f"mec(codewords=9, parts={parts}, cutoff=3)")
    full = table(layer)
    layer.begin_stage(RETRAIN)
    rows = layer.source.rows.weight
    assert tuple(rows.shape) == (9 * used + 9 * used + 3 * used, 6 // used)
    out = layer(IDS).view(-1, 3, 6)
    for f, n in enumerate(SIZES[:2]):
        codes = plain_codes(layer, f, n * used)
        for value in range(n):
            wanted = [rows[(f * used + m) * 9 + codes[value * used + m]] for m in range(used)]
            assert torch.equal(out[value, f], torch.cat(wanted))
    assert torch.equal(out[:3, 2], full[-3:])


def test_codes_name_the_nearest_codewords_and_these_are_means() -> None:
    layer = made("mec(codewords=9, parts=3, cutoff=3)")
    full = table(layer)[:301].view(301, 3, 2)
    layer.begin_stage(RETRAIN)
    books = layer.source.rows.weight.detach()[:27].view(3, 9, 2)
    codes = torch.tensor(plain_codes(layer, 0, 903)).view(301, 3)
    for m in range(3):
        apart = (full[:, m, None] - books[m]).square().sum(2)
        assert torch.allclose(apart.gather(1, codes[:, m, None])[:, 0], apart.amin(1), atol=1e-7)
        for k in range(9):
            mean = full[codes[:, m] == k, m].mean(0)
            assert torch.allclose(books[m, k], mean, atol=2e-3)  # of a spread of 0.05


def test_freeze_before_the_last_stage_codes_a_copy() -> None:
    for spec in ("mec(codewords=9, cutoff=3)", "mec(codewords=9, cutoff=3, start=initial)"):
        layer = made(spec)
        before = table(layer)
        frozen = layer.freeze()
        assert torch.equal(table(layer), before)
        other = made("mec(codewords=9, cutoff=3)")
        other.begin_stage(RETRAIN)
        assert torch.equal(frozen(IDS), other(IDS))


def test_initial_codewords_are_new_and_codes_are_not() -> None:
    plain = made("mec(codewords=9, cutoff=3)")
    fresh = made("mec(codewords=9, cutoff=3, start=initial, init=0.01)")
    fresh.source.rows.load_state_dict(plain.source.rows.state_dict())
    for layer in (plain, fresh):
        layer.begin_stage(RETRAIN)
    codes = [layer.source.address.codes.words for layer in (plain, fresh)]
    assert torch.equal(*codes)
    values = table(fresh)
    assert float(values.abs().max()) <= 0.01
    assert float(values.abs().mean()) == pytest.approx(0.005, rel=0.2)
    again = made("mec(codewords=9, cutoff=3, start=initial, init=0.01)", seed=4)
    again.load_state_dict(made("mec(codewords=9, cutoff=3, start=initial)").state_dict())
    again.begin_stage(RETRAIN)
    assert torch.equal(table(again), values)  # what was saved decides, not the layer's own seed


@pytest.mark.parametrize("rewind", [False, True])
def test_a_rewind_is_for_the_network_alone(rewind: bool) -> None:
    layer = made(f"mec(codewords=9, cutoff=3, rewind={str(rewind).lower()})")
    model = LinearReader(layer)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.weight += 1.0
        layer.source.rows.weight += 0.5
    trained = layer.freeze()(IDS)
    stage = layer.stages()[1]
    assert staging.rewinds(model) == rewind
    staging.begin(model, stage, start)
    assert torch.equal(model.weight.detach(), start["weight"] + (0.0 if rewind else 1.0))
    assert torch.equal(layer(IDS), trained)


def test_counts_are_weights() -> None:
    counts = np.ones(301, np.int64)
    counts[:20] = 10_000
    schema = fe.Schema([fe.Feature("a", 301, counts=counts)])
    errors = {}
    for weights in ("counts", "log", "equal"):
        layer = made(f"mec(codewords=16, parts=1, weights={weights})", schema=schema)
        ids = torch.arange(301)[:, None]
        apart = (layer.freeze()(ids) - layer(ids).detach()).square().sum(1)
        errors[weights] = float(apart[:20].mean())
    assert errors["counts"] < 0.3 * errors["equal"]
    assert errors["counts"] < errors["log"] < errors["equal"]


def test_equal_ids_need_no_counts() -> None:
    counted = fe.Schema(
        [fe.Feature(n, s, counts=np.full(s, 7)) for n, s in zip("abc", SIZES, strict=True)]
    )
    one, other = (made("mec(codewords=9)", schema=schema) for schema in (SCHEMA, counted))
    assert torch.equal(one.freeze()(IDS), other.freeze()(IDS))


def coded_bytes(n: int, parts: int, codewords: int, dim: int, cutoff: int) -> int:
    k = min(codewords, n)
    bits = math.ceil(math.log2(k))
    coded = 4 * math.ceil(n * parts * bits / 32) + 4 * k * dim
    return min(coded, 4 * n * dim) if n > cutoff else 4 * n * dim


@pytest.mark.parametrize(
    ("codewords", "cutoff"), [(1, 0), (2, 0), (3, 3), (8, 0), (9, 50), (100, 0), (300, 0), (400, 0)]
)
def test_bytes_are_their_formula(codewords: int, cutoff: int) -> None:
    layer = made(f"mec(codewords={codewords}, cutoff={cutoff})")
    wanted = sum(coded_bytes(n, 3, codewords, 6, cutoff) for n in SIZES)
    assert layer.memory().serving == wanted
    assert layer.memory().training == 346 * 6 * 4
    plan = fe.embedding(SCHEMA, layer.config, dim=6, device="meta")
    assert plan.memory().serving == wanted
    for stage in layer.stages()[1:]:
        layer.begin_stage(stage)
        assert layer.memory().serving == layer.memory().training == wanted
    frozen = layer.freeze()
    assert sum(one.numel() * one.element_size() for one in frozen.buffers()) == wanted
    assert torch.equal(frozen(IDS), layer(IDS))


def test_where_nothing_is_coded_there_is_one_stage() -> None:
    layer = made("mec(cutoff=500)")
    assert [stage.name for stage in layer.stages()] == ["train"]
    assert torch.equal(layer.freeze()(IDS), layer(IDS))
    assert made("mec(codewords=301, cutoff=0)").stages() == layer.stages()


def test_budgets_are_met_to_the_next_codeword() -> None:
    schema = fe.Schema([fe.Feature("a", 50_000), fe.Feature("b", 800), fe.Feature("c", 90)])
    for ratio in (1.5, 3, 7, 16, 50, 200):
        layer = fe.embedding(schema, "mec", dim=16, ratio=ratio, device="meta")
        limit = schema.full_bytes(16) / ratio
        config = layer.config
        used = [
            sum(coded_bytes(f.cardinality, 4, k, 16, 100) for f in schema.features)
            for k in (config.codewords, config.codewords + 1)
        ]
        assert layer.memory().serving == used[0] <= limit < used[1]
    full = fe.embedding(schema, "mec", dim=16, ratio=1, device="meta")
    assert full.memory().serving == schema.full_bytes(16)
    with pytest.raises(fe.BudgetError) as caught:
        fe.embedding(schema, "mec", dim=16, budget=90 * 64 + 127, device="meta")
    assert caught.value.floor == 90 * 64 + 2 * 64


def test_one_codeword_is_the_mean() -> None:
    layer = made("mec(codewords=1, cutoff=3)")
    full = table(layer)
    layer.begin_stage(RETRAIN)
    out = layer(IDS).view(-1, 3, 6)
    for f, (first, n) in enumerate(((0, 301), (301, 42))):
        assert torch.allclose(out[:, f], full[first : first + n].mean(0).expand(301, 6), atol=1e-7)


def test_state_dicts_of_both_forms_load_into_both() -> None:
    spec = "mec(codewords=9, cutoff=3)"
    full, coded = made(spec, seed=1), made(spec, seed=2)
    coded.begin_stage(RETRAIN)
    for source, finished in itertools.product((full, coded), (False, True)):
        target = made(spec, seed=3)
        if finished:
            target.begin_stage(RETRAIN)
        model, other = LinearReader(target), LinearReader(source)
        model.load_state_dict(copy.deepcopy(other.state_dict()))
        assert target.coded == source.coded
        assert torch.equal(model(IDS), other(IDS))
        assert torch.equal(target.freeze()(IDS), source.freeze()(IDS))


@pytest.mark.parametrize("settings", ["", ", start=initial, rewind=true"])
def test_codewords_learn_and_codes_stay(settings: str) -> None:
    layer = fe.embedding(SINGLE, f"mec(codewords=6, cutoff=10, parts=2{settings})", dim=8)
    model, data = LinearReader(layer), task()
    words: list[Tensor] = []

    def score() -> float:
        if layer.coded:
            words.append(layer.source.address.codes.words.clone())
        return -mean_loss(model, data)

    history = fit(model, lambda epoch: data, score, epochs=4, lr=0.03)
    scores = [record["score"] for record in history.records if record["stage"] == "retrain"]
    assert len(scores) >= 2
    assert max(scores) > scores[0]
    assert history.best_score == max(scores) == -mean_loss(model, data)
    assert all(torch.equal(one, words[0]) for one in words)


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 2, 101, 400])
def test_it_stores_the_rows_of_one_feature(dim: int, rows: int) -> None:
    """As another method's rows: no counts, any width, any number."""
    schema = fe.Schema([fe.Feature("rows", rows)])
    layer = made("mec(codewords=5)", schema=schema, dim=dim)
    for stage in layer.stages():
        layer.begin_stage(stage)
    ids = torch.arange(rows)[:, None]
    assert torch.equal(layer.freeze()(ids), layer(ids))
    assert layer.memory().serving == coded_bytes(rows, {1: 1, 2: 2, 7: 1}[dim], 5, dim, 100)


@pytest.mark.parametrize(
    "spec", ["hash(rows=200)+mec(codewords=8)", "qr+mec(codewords=4, cutoff=9)"]
)
def test_compositions_freeze_what_they_answer(spec: str) -> None:
    case = fe.check.Case(spec)
    layer = case.finished(SINGLE)
    ids = fe.check.case.single_ids()
    assert torch.equal(layer.freeze()(ids), layer(ids))
    assert "codes" in layer.memory().parts
    inner = layer.stored()[0]
    assert inner.coded


def test_errors_and_companions() -> None:
    for text, part in (
        ("mec(codewords=0)", "codewords must be at least 1"),
        ("mec(parts=0)", "parts must be at least 1"),
        ("mec(cutoff=-1)", "cutoff must be at least 0"),
        ("mec(start=zeros)", "start must be 'centroids' or 'initial'"),
        ("mec(weights=rank)", "weights must be 'counts', 'log' or 'equal'"),
    ):
        with pytest.raises(fe.ConfigError, match=part):
            made(text)
    with pytest.raises(fe.ConfigError, match="format of its own"):
        made("mec+int8")
    assert made("mec").companion(1).config.name == "hash"
    layer = made("mec(codewords=9)")
    with torch.no_grad():
        layer.source.rows.weight[5] = float("nan")
    with pytest.raises(fe.DataError, match="row 5"):
        layer.begin_stage(RETRAIN)
