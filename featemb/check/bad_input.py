"""Checks of errors: bad input never gives a wrong vector."""

from __future__ import annotations

from typing import Any

import torch

from featemb.check.case import BAGS, SINGLE, Case, expect, single_ids
from featemb.errors import FeatembError, IdError, SchemaError
from featemb.ids import Jagged


def check_bad_ids_are_named(case: Case) -> None:
    """Ids out of range raise an error that names feature, value and what is allowed."""
    layer = case.layer()
    frozen = layer.freeze()
    for feature, value in ((0, -1), (1, SINGLE.cardinalities[1]), (3, 2**40)):
        ids = single_ids(4)
        ids[2, feature] = value
        for one in (layer, frozen):
            text = _error(one, ids, IdError)
            named = all(part in text for part in (SINGLE.names[feature], str(value), "<"))
            expect(named, f"the error does not name feature, value and limit: {text}")


def check_bad_forms_are_refused(case: Case) -> None:
    """Wrong dtype, shape, keys and empty batches raise featemb errors."""
    layer, many = case.layer(), case.layer(BAGS)
    ids = single_ids(4)
    _error(layer, ids.float(), SchemaError)
    _error(layer, ids[:, :2], SchemaError)
    _error(layer, ids[0], SchemaError)
    _error(layer, ids[:0], IdError)
    _error(layer, {"user": ids[:, 0]}, SchemaError)
    _error(layer, "ids", SchemaError)
    _error(many, ids, SchemaError)
    _error(many, Jagged(torch.tensor([1, 2]), torch.tensor([1, 1, 1, 0])), SchemaError)
    _error(many, Jagged(torch.tensor([1, 999]), torch.tensor([1, 1, 0, 0])), IdError)


def _error(layer: Any, ids: Any, kind: type[FeatembError]) -> str:
    try:
        layer(ids)
    except kind as error:
        return str(error)
    except Exception as error:
        expect(False, f"{type(error).__name__} instead of {kind.__name__}: {error}")
    expect(False, f"{ids} was accepted")
    return ""
