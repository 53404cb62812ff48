"""Loaders, each on a slice in the original format; the values are made up."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from featemb.datasets import Dataset, load
from featemb.errors import DataError

PARTS = ("train", "valid", "test")


def all_ids(data: Dataset) -> torch.Tensor:
    return torch.cat([data.splits[part].ids for part in PARTS])


def rows_of(data: Dataset) -> int:
    return sum(len(split) for split in data.splits.values())


@pytest.fixture
def criteo(tmp_path: Path) -> Path:
    random, lines = np.random.default_rng(0), []
    for row in range(300):
        integers = [
            "" if random.random() < 0.3 else str(random.integers(-2, 90)) for _ in range(13)
        ]
        hashes = ["" if random.random() < 0.2 else f"{random.integers(9):08x}" for _ in range(26)]
        lines.append("\t".join([str(row % 3 // 2), *integers, *hashes]))
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_criteo(criteo: Path) -> None:
    data = load("criteo", root=criteo.parent, chronological=True, min_count=2)
    assert data.schema.names == tuple(f"C{n}" for n in range(1, 27))
    assert data.schema.numeric == tuple(f"I{n}" for n in range(1, 14))
    assert [len(data.splits[part]) for part in PARTS] == [240, 30, 30]
    cells = [line.split("\t") for line in criteo.read_text().splitlines()]
    test = data.splits["test"]
    assert test.label.tolist() == [float(row[0]) for row in cells[270:]]
    assert (test.ids == 0).tolist() == [[cell == "" for cell in row[14:]] for row in cells[270:]]
    train = [float(row[1]) for row in cells[:240] if row[1]]
    log = np.sign(train) * np.log1p(np.abs(train))
    first = [float(row[1] or "nan") for row in cells[270:]]
    expected = (np.sign(first) * np.log1p(np.abs(first)) - log.mean()) / log.std()
    assert test.numeric is not None
    np.testing.assert_allclose(test.numeric[:, 0], np.nan_to_num(expected), atol=1e-5)


def test_criteo_buckets_and_compressed(criteo: Path) -> None:
    with gzip.open(criteo.parent / "train.txt.gz", "wb") as file:
        file.write(criteo.read_bytes())
    plain = load("criteo", root=criteo, integers="buckets", min_count=1)
    packed = load("criteo", root=criteo.parent / "train.txt.gz", integers="buckets", min_count=1)
    assert torch.equal(all_ids(plain), all_ids(packed))
    assert plain.schema.numeric == ()
    # -2 .. 2 stay, 3 .. 89 become floor(ln(x)^2) = 1 .. 20; 1 and 2 are shared
    most = {int(np.floor(np.log(x) ** 2)) for x in range(3, 90)} | set(range(-2, 3))
    assert max(plain.schema.cardinalities[26:]) <= len(most) + 1
    with pytest.raises(DataError, match="unknown choice 'bucket'; did you mean 'buckets'"):
        load("criteo", root=criteo, integers="bucket")


def test_avazu(tmp_path: Path) -> None:
    names = "site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip"
    header = f"id,click,hour,C1,banner_pos,{names},device_model,device_type,device_conn_type,"
    header += ",".join(f"C{n}" for n in range(14, 22))
    lines = [header]
    for row in range(200):
        hour = ["14102100", "14102123", "14102505"][row % 3]  # a Tuesday, and a Saturday
        lines.append(f"{10**18 + row},{row % 2},{hour}," + ",".join([f"{row % 4:x}"] * 21))
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    data = load("avazu", root=tmp_path)
    assert data.schema.num_features == 24
    assert "id" not in data.schema.names
    assert "hour" not in data.schema.names
    sizes = dict(zip(data.schema.names, data.schema.cardinalities, strict=True))
    assert (sizes["hour_of_day"], sizes["weekday"], sizes["is_weekend"]) == (4, 3, 3)
    assert sizes["C14"] == 5
    assert rows_of(data) == 200


def test_kdd12(tmp_path: Path) -> None:
    lines = [
        "\t".join([str(row % 3), "5", "14340390157469404125", *[str(row % 7)] * 9])
        for row in range(210)
    ]
    (tmp_path / "training.txt").write_text("\n".join(lines) + "\n")
    data = load("kdd12", root=tmp_path, min_count=2)
    assert data.schema.num_features == 10
    assert "impressions" not in data.schema.names
    labels = torch.cat([data.splits[part].label for part in PARTS])
    assert labels.sum() == 140, "clicked at least once"
    assert data.schema.cardinalities[0] == 2
    assert data.schema.cardinalities[1:] == (8,) * 9


@pytest.fixture
def ml1m(tmp_path: Path) -> Path:
    random, folder = np.random.default_rng(1), tmp_path / "ml-1m"
    folder.mkdir()
    users = [
        f"{u}::{'FM'[u % 2]}::{[1, 18, 25][u % 3]}::{u % 21}::0{u:04}-12" for u in range(1, 21)
    ]
    kinds = ("Drama", "Comedy|Drama", "Children's")
    movies = [f"{m}::Les Misérables: {m} (1995)::{kinds[m % 3]}" for m in range(1, 31)]
    ratings = []
    for row in range(600):
        user, movie = random.integers(1, 21), random.integers(1, 31)
        ratings.append(f"{user}::{movie}::{row % 5 + 1}::97830{row:04}")
    for name, lines in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    return folder


def test_ml1m_from_folder_and_zip(ml1m: Path) -> None:
    folder = load("ml1m", root=ml1m)
    assert rows_of(folder) == 480, "ratings of 3 are dropped"
    labels = torch.cat([folder.splits[part].label for part in PARTS])
    assert labels.mean() == 0.5
    assert folder.schema.names == ("user_id", "movie_id", "gender", "age", "occupation", "zip")
    assert folder.splits["test"].user is not None
    archive = shutil.make_archive(str(ml1m), "zip", ml1m.parent, "ml-1m")
    for place in (Path(archive), ml1m.parent):
        if place == ml1m.parent:
            shutil.rmtree(ml1m)
        packed = load("ml1m", root=place)
        assert packed.fingerprint == folder.fingerprint


def test_ml1m_genres(ml1m: Path) -> None:
    data = load("ml1m_genres", root=ml1m.parent)
    genres = data.schema.features[-1]
    assert (genres.name, genres.multi, genres.pooling) == ("genres", True, "mean")
    assert (genres.cardinality, genres.max_length) == (4, 2)
    assert not data.schema.single_valued
    assert rows_of(data) == 480


@pytest.mark.parametrize("name", ["20m", "25m"])
def test_movielens_csv(tmp_path: Path, name: str) -> None:
    folder = tmp_path / f"ml-{name}"
    folder.mkdir()
    ratings = ["userId,movieId,rating,timestamp"]
    ratings += [f"{r % 9},{r % 5 + 1},{(r % 10 + 1) / 2},1112486027" for r in range(500)]
    movies = ['1,"American President, The (1995)",Comedy|Drama', "2,B (1990),(no genres listed)"]
    movies += [f"{m},C (1999),Drama" for m in (3, 4, 5)]
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]) + "\n")
    data = load(f"movielens{name}", root=tmp_path)
    assert rows_of(data) == 400, "3 and 3.5 are dropped"
    assert data.schema.features[-1].cardinality == 4
    labels = torch.cat([data.splits[part].label for part in PARTS])
    assert labels.sum() == 150
    with zipfile.ZipFile(tmp_path / f"ml-{name}.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"ml-{name}/{file.name}")
    packed = load(f"movielens{name}", root=tmp_path / f"ml-{name}.zip")
    assert packed.fingerprint == data.fingerprint


def test_frappe_libfm(tmp_path: Path) -> None:
    for part, rows in (("train", 60), ("validation", 20), ("test", 10)):
        lines = []
        for row in range(rows):
            fields = " ".join(f"{100 * f + row % (f + 2)}:1" for f in range(10))
            lines.append(f"{'1' if row % 3 == 0 else '-1'} {fields}")
        (tmp_path / f"frappe.{part}.libfm").write_text("\n".join(lines) + "\n")
    data = load("frappe", root=tmp_path)
    assert [len(data.splits[part]) for part in PARTS] == [60, 20, 10]
    assert data.schema.cardinalities == tuple(f + 3 for f in range(10))
    assert data.splits["test"].label.sum() == 4
    (tmp_path / "frappe.test.libfm").unlink()
    with pytest.raises(DataError, match=r"no file frappe\.test\.libfm"):
        load("frappe", root=tmp_path)


def test_frappe_csv_gets_negatives(tmp_path: Path) -> None:
    header = [
        "user",
        "item",
        "cnt",
        "daytime",
        "weekday",
        "isweekend",
        "homework",
        "cost",
        "weather",
        "country",
        "city",
    ]
    lines = ["\t".join(header)]
    for row in range(90):
        cells = [row % 9, row % 30, 1, "morning", "sunday", "weekend", "home", "free", "sunny"]
        lines.append("\t".join(str(cell) for cell in [*cells, "Spain", row % 4]))
    path = tmp_path / "frappe.csv"
    path.write_text("\n".join(lines) + "\n")
    from featemb.datasets.frappe_negatives import with_negatives

    (batch,) = with_negatives(path, seed=3)
    (again,) = with_negatives(path, seed=3)
    (other,) = with_negatives(path, seed=4)
    assert batch.equals(again)
    assert not batch.equals(other)
    assert batch.column("label").to_pylist() == [1, 0, 0] * 90
    items, users, cities = (
        np.array(batch.column(n)).reshape(-1, 3) for n in ("item", "user", "city")
    )
    assert (users == users[:, :1]).all()
    assert (cities == cities[:, :1]).all()
    used = set(zip(users[:, 0], cities[:, 0], items[:, 0], strict=True))
    for place in (1, 2):
        assert not used & set(zip(users[:, 0], cities[:, 0], items[:, place], strict=True))
    data = load("frappe", root=tmp_path)
    assert rows_of(data) == 270
    assert data.schema.num_features == 10


@pytest.mark.parametrize("name", ["criteo", "avazu", "kdd12", "ml1m", "movielens20m", "frappe"])
def test_absent_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found none of .* give the folder as root"):
        load(name, root=tmp_path)


def test_broken_lines_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "training.txt").write_text("0\t1\t2\n")
    with pytest.raises(DataError, match=r"cannot read training\.txt"):
        load("kdd12", root=tmp_path)
    (tmp_path / "ml-1m.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"ml-1m\.zip"):
        load("ml1m", root=tmp_path)
    (tmp_path / "frappe.train.libfm").write_text("1 a:1\n")
    for part in ("validation", "test"):
        (tmp_path / f"frappe.{part}.libfm").write_text("1 a:1\n")
    with pytest.raises(DataError, match="is not a libfm file of 10 fields"):
        load("frappe", root=tmp_path)
