"""The pinned packages of other libraries work with the pinned set: they import and learn."""

from __future__ import annotations

from pathlib import Path

import foreign_models
import pytest
import torch
from sklearn.metrics import roc_auc_score


def test_deepctr_torch_trains() -> None:
    model = foreign_models.deepctr_deepfm()
    columns, labels = foreign_models.planted_rows(4000, seed=5)
    with torch.no_grad():
        scores = model(foreign_models.deepctr_input(model, columns)).flatten()
    assert roc_auc_score(labels, scores.numpy()) > 0.7


@pytest.mark.parametrize("kind", ["deepfm", "dcnv2"])
def test_fuxictr_trains(kind: str, tmp_path: Path) -> None:
    model = foreign_models.fuxictr_model(kind, tmp_path)
    _, labels = foreign_models.planted_rows(4000, seed=5)
    scores = model.predict(foreign_models.fuxictr_batches(4000, 5))
    assert roc_auc_score(labels, scores) > 0.7
