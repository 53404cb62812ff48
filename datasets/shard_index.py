"""`Index`: what a folder of encoded shards holds, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featemb.datasets.encode import checksum, file_digest
from featemb.datasets.encoding import Encoding
from featemb.datasets.recipe import PARTS, Recipe
from featemb.errors import DataError, FeatembError
from featemb.schema import Schema

FORMAT = "featemb-shards-1"
FILE = "index.json"
_KINDS = {str(kind): kind for kind in (pa.string(), pa.int64(), pa.float64())}


@dataclass(frozen=True)
class Shard:
    """Some rows of a split, as ``.npy`` files.

    Attributes:
        name: as "train-00003".
        rows: number of rows.
        ones: rows of label 1.
        folder: of the index.
        files: kind ("ids", "numeric", "label", "user") -> path in the folder, bytes, SHA-256.
    """

    name: str
    rows: int
    ones: int
    folder: Path
    files: Mapping[str, Mapping[str, Any]]

    def path(self, kind: str) -> Path:
        """Return the file of a kind."""
        return self.folder / str(self.files[kind]["path"])

    def open(self, kind: str) -> npt.NDArray[Any]:
        """Map a file into memory, read-only.

        Raises:
            DataError: it is not the array that the index says.
        """
        try:
            array: npt.NDArray[Any] = np.load(self.path(kind), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"shard {self.path(kind)} cannot be read: {error}") from error
        if len(array) != self.rows:
            raise DataError(f"shard {self.path(kind)} has {len(array)} rows, not {self.rows}")
        return array


@dataclass(frozen=True)
class Index:
    """A folder of encoded shards.

    Attributes:
        folder: where it is.
        schema: features with cardinalities (None where ids are hashed without a bound); counts
            are apart, see `counts`.
        recipe: what made it.
        splits: "train", "valid", "test" -> shards in the order of rows.
        fingerprint: SHA-256 over the encoded content, as of `featemb.datasets.load`.
        meta: facts of the source.
        document: the whole index.
    """

    folder: Path
    schema: Schema
    recipe: Recipe
    splits: Mapping[str, tuple[Shard, ...]]
    fingerprint: str
    meta: Mapping[str, Any]
    document: Mapping[str, Any] = field(repr=False)

    def files(self) -> dict[str, Mapping[str, Any]]:
        """Return path in the folder -> entry, of all files."""
        shards = [shard for part in PARTS for shard in self.splits[part]]
        entries = [entry for shard in shards for entry in shard.files.values()]
        for one in self.document["vocabulary"].values():
            entries += one.values()
        return {entry["path"]: entry for entry in entries}

    def counts(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the training counts of each feature's ids; empty where ids are hashed."""
        found = {}
        for name, entry in self.document["vocabulary"].items():
            found[name] = np.load(self.folder / entry["counts"]["path"], allow_pickle=False)
        return found

    def encoding(self) -> Encoding:
        """Return what turns raw rows into ids.

        Vocabularies of up to a million values are mapped into memory, larger ones copied into it.

        Raises:
            DataError: a vocabulary cannot be read.
        """
        values = {name: pa.array([], _KINDS[kind]) for name, kind in self.document["kinds"].items()}
        for name, entry in self.document["vocabulary"].items():
            path = self.folder / entry["values"]["path"]
            try:
                with pa.memory_map(os.fspath(path)) as file:
                    whole = pa.ipc.open_file(file).read_all().column("value")
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"vocabulary {path} cannot be read: {error}") from error
            if whole.num_chunks:
                values[name] = whole.chunk(0) if whole.num_chunks == 1 else whole.combine_chunks()
        moments = {name: (one[0], one[1]) for name, one in self.document["moments"].items()}
        return Encoding(self.recipe, values, moments)


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of encoded shards."""
    return (Path(folder) / FILE).is_file()


def read_index(folder: str | os.PathLike[str]) -> Index:
    """Read the index of a folder of shards; every file must be there, of the right size.

    Raises:
        DataError: there is no index, it is damaged or of another format, or a file is missing or
            has been cut short; the message names it.
    """
    root = Path(folder)
    try:
        document = json.loads((root / FILE).read_text("utf-8"))
        wanted = document.pop("checksum")
        if document["format"] != FORMAT:
            raise DataError(f"{root / FILE} has format {document['format']!r}, not {FORMAT!r}")
        if checksum(document) != wanted:
            raise DataError(f"{root / FILE} does not match its checksum: encode anew")
        index = Index(
            folder=root,
            schema=Schema.from_json(json.dumps(document["schema"])),
            recipe=Recipe.from_json(json.dumps(document["recipe"])),
            splits={
                part: tuple(Shard(**one, folder=root) for one in document["splits"][part])
                for part in PARTS
            },
            fingerprint=document["fingerprint"],
            meta=document["meta"],
            document=document,
        )
    except FeatembError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{os.fspath(root)!r} holds no encoded shards: {error}") from error
    for path, entry in index.files().items():
        size = (root / path).stat().st_size if (root / path).is_file() else None
        if size != entry["bytes"]:
            raise DataError(f"{root / path} has {size} bytes, not {entry['bytes']}: encode anew")
    return index


def verify(index: Index) -> None:
    """Read all files of a folder of shards, and compare their checksums.

    Raises:
        DataError: a file has changed; the message names it.
    """
    for entry in index.files().values():
        _verify(index.folder, entry)


def verify_shard(shard: Shard) -> None:
    """Read the files of one shard, and compare their checksums.

    Raises:
        DataError: a file has changed; the message names it.
    """
    for entry in shard.files.values():
        _verify(shard.folder, entry)


def _verify(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["path"]
    try:
        found = file_digest(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if found != entry["sha256"]:
        raise DataError(f"{path} does not match its checksum: it is damaged, encode anew")
