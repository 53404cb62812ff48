"""The contract, over every registered method."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable

import cases
import pytest

import featemb as fe

SPECS = [spec for specs in cases.CASES.values() for spec in specs]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("check", fe.check.checks(), ids=lambda check: check.__name__)
def test_contract(spec: str, check: Callable[[fe.check.Case], None]) -> None:
    check(fe.check.Case(spec))


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert sorted(cases.CASES) == fe.methods()
    for name, specs in cases.CASES.items():
        assert specs
        assert all(fe.parse(spec).method.name == name for spec in specs)


def test_every_method_is_one_file_of_its_name() -> None:
    package = sys.modules["featemb.methods"]
    files = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    assert files == fe.methods()


def test_methods_stays_a_function() -> None:
    assert fe.methods() == fe.methods()
    assert fe.codecs() == fe.codecs()


def test_check_method_runs_all_checks() -> None:
    fe.check.check_method("full")


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS)
def test_same_answers_on_cuda(spec: str) -> None:
    case = fe.check.Case(spec)
    layer = case.layer()
    ids = fe.check.case.single_ids()
    there = case.layer(device="cuda")
    assert (there(ids.cuda()).cpu() - layer(ids)).abs().max() < 1e-6
