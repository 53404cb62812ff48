"""Checks of budgets and plans."""

from __future__ import annotations

from dataclasses import replace

from featemb.budget import free_knobs, serving_bytes
from featemb.build import embedding
from featemb.check.case import Case, expect
from featemb.errors import BudgetError
from featemb.layer import FeatureEmbedding
from featemb.schema import Feature, Schema
from featemb.spec import parse

_SCHEMA = Schema([Feature("user", 20_000), Feature("item", 3_000), Feature("day", 7)])


def check_budget(case: Case) -> None:
    """Ratios are met from below: by less than one row or 1%, or the next size does not fit."""
    if not free_knobs(parse(case.spec)):
        return
    for ratio in (2, 10, 100):
        limit = _SCHEMA.full_bytes(case.dim) / ratio
        try:
            layer = embedding(_SCHEMA, case.spec, dim=case.dim, ratio=ratio, device="meta")
        except BudgetError as error:
            expect(error.floor > limit, f"ratio {ratio}: refused, but its floor {error.floor} fits")
            continue
        used = layer.memory().serving
        slack = max(4 * case.dim, limit / 100)
        expect(used <= limit, f"ratio {ratio}: {used} bytes are above the limit {limit:.0f}")
        following = used if used > limit - slack else _next_size(layer)
        tight = following > limit or following == used  # it does not fit, or there is none
        expect(tight, f"ratio {ratio}: {used} bytes waste the limit {limit:.0f}")


def _next_size(layer: FeatureEmbedding) -> int:
    """Serving bytes with the size knob one step larger."""
    methods = list(layer.spec.methods)
    number = free_knobs(layer.request.spec)[-1]
    knob = str(methods[number].knob)
    methods[number] = replace(methods[number], **{knob: getattr(methods[number], knob) + 1})
    return serving_bytes(layer.spec.with_methods(methods), layer.schema, layer.dim)


def check_impossible_budget(case: Case) -> None:
    """A budget below the floor raises `BudgetError`, whose floor can be met."""
    spec = parse(case.spec)
    if any(method.knob for method in spec.methods) and not free_knobs(spec):
        return
    try:
        embedding(_SCHEMA, case.spec, dim=case.dim, budget=1, device="meta")
    except BudgetError as error:
        floor = error.floor
    else:
        expect(False, "a budget of one byte was accepted")
        return
    used = embedding(_SCHEMA, case.spec, dim=case.dim, budget=floor, device="meta")
    expect(used.memory().serving <= floor, "the floor cannot be met")


def check_plan_is_truth(case: Case) -> None:
    """The same layer on the meta device counts the same bytes as the real one."""
    real = case.layer().memory()
    plan = case.layer(device="meta").memory()
    expect(plan.serving == real.serving, f"plan {plan.serving}, real {real.serving}")
    expect(plan.training == real.training, f"plan {plan.training}, real {real.training}")


def check_companion(case: Case) -> None:
    """A companion of width 1 exists, for first-order terms, with one number a feature."""
    layer = case.layer()
    companion = layer.companion(1)
    expect(companion.widths == (1,) * len(layer.widths), f"widths are {companion.widths}")
    expect(companion.memory().serving < layer.memory().serving, "it is not smaller")
