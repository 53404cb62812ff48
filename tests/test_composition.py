"""Methods that store each other's rows: every pair works, or is refused with its reason."""

from __future__ import annotations

import itertools

import pytest
import torch
from public_sizes import SCHEMAS

import featemb as fe
from featemb import optim
from featemb.check import sizes, storage
from featemb.check.case import SINGLE, LinearReader, single_ids, task
from featemb.codecs.base import codec_by_name
from featemb.composition import refusal
from featemb.config import find, make

# What makes a method fast, or shows it at the sizes of the checks.
SMALL = {
    "cafe": "cafe(rows=70, threshold=3.0)",
    "deeplight": "deeplight(ramp=30, every=2)",
    "dhe": "dhe(width=8, hashes=32, layers=2)",
    "mec": "mec(cutoff=0)",
    "optembed": "optembed(generations=3)",
    "tt": "tt(rank=2)",
}
METHODS = fe.methods()


def reason(outer: str, inner: str) -> str:
    return refusal([make(outer, {}), make(inner, {})], None)  # type: ignore[list-item]


PAIRS = list(itertools.product(METHODS, METHODS))
ALLOWED = [pair for pair in PAIRS if not reason(*pair)]
REFUSED = [pair for pair in PAIRS if reason(*pair)]


def text(pair: tuple[str, str]) -> str:
    return "+".join(SMALL.get(name, name) for name in pair)


@pytest.mark.parametrize("pair", ALLOWED, ids="+".join)
def test_every_pair_serves_what_it_trains_in_the_bytes_of_its_plan(pair: tuple[str, str]) -> None:
    case = fe.check.Case(text(pair))
    layer = case.finished(SINGLE)
    frozen = layer.freeze("fp32")
    ids = single_ids()
    assert torch.equal(frozen(ids), layer(ids))
    assert frozen.memory().parts == layer.memory().parts
    assert case.layer(device="meta").memory().serving == layer.memory().serving


# Every inner method below one outer method, and every outer method above one inner one.
TRAINED = [pair for pair in ALLOWED if pair[0] == "qr" or pair[1] == "lsq"]


@pytest.mark.parametrize("pair", TRAINED, ids="+".join)
def test_pairs_keep_the_core_of_the_contract_in_training(pair: tuple[str, str]) -> None:
    """The whole contract over every pair takes an hour; this is what compositions could break."""
    case = fe.check.Case(text(pair))
    storage.check_frozen_answers(case)
    sizes.check_budget(case)


@pytest.mark.parametrize(
    "spec",
    [
        "hash+mde(alpha=0.3)",
        "memcom(rows=40)+lowdim(width=3)+int8",
        "multi_hash(rows=90)+magnitude",
        "qr+optembed(generations=3)",
        "tt(rank=2)+lowdim(width=3)",
        "unified(lookups=2)+magnitude+int8",
        "unified(lookups=2)+pep(grain=row)",
    ],
)
@pytest.mark.parametrize("check", fe.check.checks(), ids=lambda check: check.__name__)
def test_some_pairs_keep_the_whole_contract(spec: str, check: object) -> None:
    check(fe.check.Case(spec))  # type: ignore[operator]


def test_refused_pairs_say_why() -> None:
    assert {find(outer).axis for outer, _ in ALLOWED} <= {"address", "shape"}  # type: ignore[attr-defined]
    for pair in REFUSED:
        why = reason(*pair)
        with pytest.raises(fe.ConfigError) as error:
            fe.parse("+".join(pair))
        assert str(error.value) == why
        assert all(name in why for name in pair)


def test_every_method_composes_or_says_why_not() -> None:
    for name in METHODS:
        method = find(name)
        outer = any(pair[0] == name for pair in ALLOWED)
        inner = any(pair[1] == name for pair in ALLOWED)
        assert issubclass(method, fe.MethodConfig)
        assert outer or inner or method.own_rows, name


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("codec", fe.codecs())
def test_every_method_goes_with_every_codec(name: str, codec: str) -> None:
    why = refusal([make(name, {})], codec_by_name(codec))  # type: ignore[list-item]
    if why:
        assert find(name).axis == "format"  # type: ignore[attr-defined]
        with pytest.raises(fe.ConfigError) as error:
            fe.parse(f"{name}+{codec}")
        assert str(error.value) == why
        return
    case = fe.check.Case(f"{SMALL.get(name, name)}+{codec}")
    sizes.check_plan_is_truth(case)
    layer = case.layer().eval()
    frozen = layer.freeze()
    assert frozen.memory().parts == layer.memory().parts
    assert torch.isfinite(frozen(single_ids())).all()


def test_rows_are_those_of_the_inner_method() -> None:
    """Brute force: the row numbers of the outer method are the ids of the inner one."""
    layer = fe.check.Case("hash(rows=30)+lowdim(width=3)").layer()
    (inner,) = layer.stored()
    ids = single_ids(16)
    rows = layer.source.address(ids, torch.arange(4))[..., 0]
    table = inner.source.rows.weight
    assert table.shape == (30, 3)
    wanted = torch.nn.functional.pad(table[rows], (0, 5)).flatten(1)
    assert torch.equal(layer(ids), wanted)


def test_factors_of_products_start_around_one() -> None:
    """The rows of qr's further digits are 1 and what is stored."""
    plain, composed = (fe.check.Case(spec).layer() for spec in ("qr", "qr+magnitude(kept=9999)"))
    ids = single_ids(64)
    scale = plain(ids).std()
    assert 0.7 * scale < composed(ids).std() < 1.4 * scale
    (inner,) = composed.stored()
    assert inner.source.rows.rows.weight.abs().max() <= 0.05


def test_three_axes_and_a_codec() -> None:
    spec = fe.parse("unified(lookups=2)+magnitude+int4")
    assert [method.name for method in spec.methods] == ["unified", "magnitude"]
    assert str(spec) == "unified(lookups=2)+magnitude+int4"
    assert str(spec.at_width(1)) == "unified+magnitude+int4"
    assert str(fe.parse("qr+lowdim+int8").at_width(1)) == "qr+int8"  # no row narrower than 1


@pytest.mark.parametrize("spec", ["unified(lookups=2)+magnitude", "qr+pep", "hash+optfs"])
def test_every_parameter_has_one_optimizer_and_hooks_run_once(spec: str) -> None:
    layer = fe.check.Case(spec).layer()
    model = LinearReader(layer)
    owned = [
        id(parameter)
        for split in ("train", "held_out")
        for one in optim.build(model, lr=0.01, split=split)
        for group in one.param_groups
        for parameter in group["params"]
    ]
    assert sorted(owned) == sorted(id(one) for one in model.parameters())
    steps: list[int] = []
    (inner,) = layer.stored()
    inner.after_step = steps.append  # type: ignore[method-assign]
    data = task(4)
    fe.fit(model, lambda epoch: data, held_out=lambda epoch: data, epochs=1)
    assert steps.count(1) == sum(stage.kind == "train" for stage in layer.stages())


@pytest.mark.parametrize("ratio", [5, 20, 150])
@pytest.mark.parametrize("spec", ["unified(lookups=2)+magnitude", "hash+magnitude+int8", "qr+pep"])
def test_budgets_of_compositions_hold_at_public_sizes(spec: str, ratio: float) -> None:
    schema = SCHEMAS["criteo"]
    layer = fe.embedding(schema, spec, dim=16, ratio=ratio, device="meta")
    limit = schema.full_bytes(16) / ratio
    assert 0.98 * limit <= layer.memory().serving <= limit


def test_the_contract_catches_a_composition_that_serves_another_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from featemb.parts.stored import StoredRows

    honest = StoredRows.forward
    monkeypatch.setattr(StoredRows, "forward", lambda self, rows: honest(self, rows) * 1.01)
    with pytest.raises(fe.check.CheckError):
        storage.check_frozen_answers(fe.check.Case("hash+lowdim(width=3)"))
