"""Checkpoints of methods whose rows exist in a low-precision format only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import featemb as fe
from featemb.check.case import Case, LinearReader, single_ids, task


class Killed(Exception):
    """Training is interrupted."""


@pytest.mark.parametrize("spec", ["alpt", "lowprec", "lowprec(rows=bf16)"])
def test_rows_without_a_float_copy_go_on(spec: str, tmp_path: Path) -> None:
    data, file = task(6, 32), tmp_path / "state.pt"

    def train(kill_after: int | None, checkpoint: Path | None) -> torch.Tensor:
        model = LinearReader(Case(spec).layer())
        told: list[dict[str, Any]] = []

        def note(record: dict[str, Any]) -> None:
            told.append(record)
            if len(told) == kill_after:
                raise Killed

        fe.fit(model, lambda _: data, epochs=4, on_record=note, checkpoint=checkpoint)
        return model.eval()(single_ids()).detach()

    with pytest.raises(Killed):
        train(3, file)
    assert file.is_file()
    assert torch.equal(train(None, file), train(None, None))
