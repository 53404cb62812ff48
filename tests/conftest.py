"""Shared fixtures: one thread, fixed seeds, private caches, and the data sets where they are."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # workers share the cores; more threads only make them wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - third-party code may draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded data sets of this run go to a folder of its own, never to the user's cache."""
    os.environ["FEATEMB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def data_folders() -> list[Path]:
    """Where data sets are looked for, in order."""
    named = [Path(os.environ["FEATEMB_DATA"])] if os.environ.get("FEATEMB_DATA") else []
    return [*named, ROOT.parent / "shared" / "data", ROOT / "data"]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the data sets that are not part of the package; skips where there is none."""
    for folder in data_folders():
        if any(folder.glob("*.parquet")):
            return folder
    pytest.skip("no data sets: set FEATEMB_DATA to a folder with their Parquet files")


@pytest.fixture(scope="session")
def data_file(data_root: Path) -> Callable[[str], Path]:
    """The Parquet file of a data set by name; skips where it is absent."""

    def find(name: str) -> Path:
        path = data_root / f"{name}.parquet"
        if not path.is_file():
            pytest.skip(f"no data set {name}: no file {path.name} in the data folder")
        return path

    return find
