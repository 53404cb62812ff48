"""Raw rows to ids by a data set's encoding: as when it was encoded, and for rows never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import featemb as fe
from featemb import datasets
from featemb.datasets.dataset import Dataset

ROWS = 400


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random = np.random.default_rng(0)
    tags = [list(random.integers(0, 6, random.integers(0, 4)).astype(str)) for _ in range(ROWS)]
    return pd.DataFrame(
        {
            "user": random.integers(-5, 40, ROWS),
            "city": random.choice(["Bern", "Zürich", "", "x"], ROWS),
            "tags": tags,
            "price": np.where(random.random(ROWS) < 0.1, np.nan, random.lognormal(size=ROWS)),
            "click": random.integers(0, 2, ROWS),
        }
    )


def encode(frame: pd.DataFrame, folder: Path, multi: bool) -> Dataset:
    columns = [
        {"name": "user", "min_count": 3},
        {"name": "city"},
        *([{"name": "tags", "multi": True}] if multi else []),
        {"name": "price", "kind": "numeric"},
    ]
    recipe = {"label": "click", "columns": columns, "split": {"rule": "order"}}
    frame.to_parquet(folder / "rows.parquet")
    (folder / "recipe.json").write_text(pd.Series(recipe).to_json())
    return datasets.load(
        str(folder / "rows.parquet"), schema=folder / "recipe.json", cache=folder / "cache"
    )


@pytest.mark.parametrize("multi", [False, True])
def test_raw_rows_get_the_ids_that_they_had(
    multi: bool, frame: pd.DataFrame, tmp_path: Path
) -> None:
    data = encode(frame, tmp_path, multi)
    assert data.encoding is not None
    last = frame.iloc[-len(data.splits["test"]) :]
    raw = data.encoding(last)
    (batch,) = data.splits["test"].batches(len(last))
    assert raw.numeric is not None
    assert batch.numeric is not None
    assert torch.equal(raw.numeric, batch.numeric)
    if multi:
        assert isinstance(raw.ids, fe.Jagged)
        assert isinstance(batch.ids, fe.Jagged)
        assert torch.equal(raw.ids.values, batch.ids.values)
        assert torch.equal(raw.ids.lengths, batch.ids.lengths)
    else:
        assert isinstance(raw.ids, torch.Tensor)
        assert isinstance(batch.ids, torch.Tensor)
        assert torch.equal(raw.ids, batch.ids)


def test_new_and_missing_values_are_unknown(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoding = encode(frame, tmp_path, False).encoding
    assert encoding is not None
    rows = pd.DataFrame(
        {"city": ["Bern", "nowhere", None], "user": [10**12, 3, 4], "price": [1.0, None, 2.0]}
    )
    ids, numeric, _ = encoding(rows)
    assert isinstance(ids, torch.Tensor)
    assert (ids[:, 1] > 0).tolist() == [True, False, False]
    assert int(ids[0, 0]) == 0
    assert numeric is not None
    assert float(numeric[1, 0]) == 0.0, "a missing number is the mean"


def test_rows_that_do_not_fit_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoding = encode(frame, tmp_path, False).encoding
    assert encoding is not None
    with pytest.raises(fe.DataError, match="lack the column 'city'"):
        encoding(frame[["user", "price"]])
    with pytest.raises(fe.DataError, match="no rows"):
        encoding(frame.iloc[:0])
    with pytest.raises(fe.DataError, match="'price' holds an infinite value"):
        encoding(frame.assign(price=np.inf))


def test_a_folder_without_vocabularies_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    encode(frame, tmp_path, False)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "vocabulary.arrow").write_bytes(b"not arrow")
    assert encode(frame, tmp_path, False).encoding is not None, "it is made anew"


def test_ids_made_directly_need_no_encoding() -> None:
    assert datasets.load("synthetic", rows=50).encoding is None
