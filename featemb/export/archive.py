"""Archives (``.pt2``): the manifest inside, and what keeps their readers from unpickling."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featemb.errors import FormatError
from featemb.export import seal
from featemb.export.job import FORMAT

_MANIFEST = "extra/featemb.json"


def add_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Add a manifest to an archive, and seal it."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        text = json.dumps(manifest, separators=(",", ":"))
        made = zipfile.ZipInfo(f"{root}/{_MANIFEST}", (1980, 1, 1, 0, 0, 0))
        made.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(made, text)
    seal.seal_zip(path)


def tidy(path: Path, deflated: Callable[[str], bool], emptied: str | None = None) -> None:
    """Deflate the entries whose names are to be, and empty those that hold a part of a name."""
    made_anew = path.with_name("tidy.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made_anew, "w") as new:
        for info in old.infolist():
            made = zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0))
            made.compress_type = (
                zipfile.ZIP_DEFLATED if deflated(info.filename) else zipfile.ZIP_STORED
            )
            with new.open(made, "w", force_zip64=True) as target, old.open(info) as source:
                if emptied is None or emptied not in info.filename:
                    shutil.copyfileobj(source, target)
    os.replace(made_anew, path)


def manifest_of_archive(path: Path) -> dict[str, Any]:
    """Return the manifest of a sealed archive.

    Raises:
        FormatError: it is corrupt, cut short, not written by featemb, or of another version.
    """
    seal.check(path)
    manifest: dict[str, Any] = json.loads(seal.entry(path, _MANIFEST))
    return check_version(manifest, path)


def check_version(manifest: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a manifest of this version.

    Raises:
        FormatError: it is of another one.
    """
    if manifest.get("format") != FORMAT:
        raise FormatError(
            f"{os.fspath(path)!r} has export format {manifest.get('format')!r}, this version "
            f"reads {FORMAT}"
        )
    return manifest


@contextmanager
def named_pt2(path: Path) -> Iterator[Path]:
    """Yield a name of a file that ends in ``.pt2``: torch reads no other."""
    if path.suffix == ".pt2":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.pt2"
        link.symlink_to(path.resolve())
        yield link


def refuse_pickles(path: Path) -> None:
    """Refuse an archive whose reader would unpickle something: ours hold plain tensors only.

    Raises:
        FormatError: names the entry.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            pickled = name.endswith((".pt", ".pkl")) and info.file_size > 0
            if name.endswith("_config.json"):
                pickled = b'"use_pickle": true' in archive.read(info).replace(b":true", b": true")
            if pickled:
                raise FormatError(f"{os.fspath(path)!r}: {name} is pickled, which is not read")
