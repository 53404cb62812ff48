"""Checks of what a layer answers: shapes, input forms, pooling, determinism."""

from __future__ import annotations

import torch

from featemb.check.case import BAGS, SINGLE, UNBOUNDED, Case, bags, expect, single_ids
from featemb.config import find
from featemb.errors import ConfigError
from featemb.ids import Jagged
from featemb.layer import MethodConfig
from featemb.spec import parse


def check_text_round_trip(case: Case) -> None:
    """The spec's text and configuration determine each other; unknown settings are named."""
    spec = parse(case.spec)
    expect(parse(str(spec)) == spec, f"{spec} does not read back as itself")
    solved = case.layer().spec
    expect(parse(str(solved)) == solved, f"{solved} does not read back as itself")
    try:
        parse(f"{spec.method.name}(no_such_setting=1)")
    except ConfigError as error:
        expect("no_such_setting" in str(error), f"the error does not name the setting: {error}")
    else:
        expect(False, "an unknown setting was accepted")


def check_registered_facts(case: Case) -> None:
    """The method is registered with a summary and a paper."""
    config = type(parse(case.spec).method)
    expect(find(config.name) is config, f"{config.name} is not the registered class")
    expect(bool(config.summary and config.paper), f"{config.name} lacks a summary or a paper")
    expect(issubclass(config, MethodConfig) and bool(config.__doc__), "no docstring")


def check_shape(case: Case) -> None:
    """Output is ``[B, sum(widths)]`` for batches of one and more, float32."""
    layer = case.layer()
    expect(len(layer.widths) == SINGLE.num_features, f"widths are {layer.widths}")
    for batch in (1, 2, 64):
        out = layer(single_ids(batch))
        expect(out.shape == (batch, sum(layer.widths)), f"shape {tuple(out.shape)}")
        expect(out.dtype == torch.float32 and torch.isfinite(out).all(), "not finite float32")


def check_input_forms_agree(case: Case) -> None:
    """Dense, jagged and dict input of the same ids give the same vectors."""
    layer = case.layer().eval()
    ids = single_ids(16)
    dense = layer(ids)
    jagged = Jagged(ids.t().reshape(-1), torch.ones(ids.numel(), dtype=torch.int64))
    named = {name: ids[:, f] for f, name in enumerate(SINGLE.names)}
    expect(torch.allclose(layer(jagged), dense, atol=1e-6), "jagged and dense input disagree")
    expect(torch.allclose(layer(named), dense, atol=1e-6), "dict and dense input disagree")
    expect(torch.equal(layer(ids.int()), dense), "int32 and int64 ids disagree")


def check_lookup_agrees(case: Case) -> None:
    """``lookup`` of flat (id, feature) pairs gives the vectors of the dense call."""
    layer = case.layer().eval()
    ids = single_ids(16)
    feature = torch.arange(SINGLE.num_features).repeat(16)
    flat = layer.lookup(ids.reshape(-1), feature).view(16, SINGLE.num_features, -1)
    parts = [flat[:, f, :width] for f, width in enumerate(layer.widths)]
    expect(torch.allclose(torch.cat(parts, 1), layer(ids), atol=1e-6), "lookup disagrees")


def check_pooling(case: Case) -> None:
    """Bags pool by sum, mean and max as a loop over bags does; empty bags give zeros."""
    layer = case.layer(BAGS).eval()
    ids = bags()
    batch = len(ids.lengths) // BAGS.num_features
    out = layer(ids)
    pools = {"sum": lambda v: v.sum(0), "mean": lambda v: v.mean(0), "max": lambda v: v.amax(0)}
    start = column = 0
    for f, feature in enumerate(BAGS.features):
        width = layer.widths[f]
        for b in range(batch):
            length = int(ids.lengths[f * batch + b])
            bag = ids.values[start : start + length]
            start += length
            vectors = layer.lookup(bag, torch.full_like(bag, f))[:, :width]
            wanted = pools[feature.pooling](vectors) if length else torch.zeros(width)
            given = out[b, column : column + width]
            what = f"{feature.pooling} of {length} ids of {feature.name!r}"
            expect(torch.allclose(given, wanted, atol=1e-5), f"{what} is wrong")
        column += width


def check_one_seed_decides(case: Case) -> None:
    """Same seed, same layer; another seed, another one; global random state is left alone."""
    ids = single_ids()
    before = torch.get_rng_state()
    first, again, other = case.layer(seed=1)(ids), case.layer(seed=1)(ids), case.layer(seed=2)(ids)
    expect(torch.equal(torch.get_rng_state(), before), "the global generator was used")
    expect(torch.equal(first, again), "two layers of one seed differ")
    expect(not torch.equal(first, other), "two seeds give the same layer")


def check_samples_are_independent(case: Case) -> None:
    """A sample's vector depends on neither its place in the batch nor its company."""
    layer = case.layer().eval()
    ids = single_ids(32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    expect(torch.allclose(layer(ids)[order], layer(ids[order]), atol=1e-6), "order matters")
    expect(torch.allclose(layer(ids)[:1], layer(ids[:1]), atol=1e-6), "company matters")


def check_unbounded_ids(case: Case) -> None:
    """Methods that claim so take any non-negative int64 without a vocabulary."""
    config = parse(case.spec).method
    if not config.unbounded:
        return
    layer = case.layer(UNBOUNDED, **_size(config))
    ids = torch.tensor([[0, 2**63 - 1], [2**40 + 1, 5]])
    out = layer(ids)
    expect(torch.isfinite(out).all(), "not finite")
    expect(not torch.equal(out[0], out[1]), "far ids share every row")


def _size(config: MethodConfig) -> dict[str, int]:
    given = config.knob is not None and getattr(config, config.knob) is not None
    return {} if given else {"budget": 8192}


def check_compiled_agrees(case: Case) -> None:
    """`torch.export` of the frozen layer gives the same answers, at any batch size."""
    frozen = case.layer().freeze()
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(frozen, (single_ids(8),), dynamic_shapes=({0: batch},))
    for size in (2, 33):
        ids = single_ids(size)
        expect(torch.equal(program.module()(ids), frozen(ids)), "the exported program differs")
