"""The encoded rows on their way to disk: one Parquet file a split, and a digest of the content."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.splitting import Parts
from featemb.schema import Schema


class Shards:
    """Writes encoded batches to their splits; a context manager that closes the files.

    Args:
        folder: where the files go.
        recipe: names of the label and of the multi-valued columns.

    Attributes:
        labels: int64 ``[3, 2]``, rows of each split by label.
        longest: longest bag of each multi-valued feature.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.labels = np.zeros((len(PARTS), 2), np.int64)
        self.longest: dict[str, int] = {}
        self._folder = folder
        self._label = recipe.label
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._digests: defaultdict[str, hashlib._Hash] = defaultdict(hashlib.sha256)

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, encoded: pa.RecordBatch, part: Parts) -> None:
        """Write a batch's rows to the splits that ``part`` (int8 ``[rows]``) says."""
        for number, name in enumerate(PARTS):
            chosen = encoded.filter(pa.array(part == number))
            if number not in self._writers:
                path = self._folder / f"{name}.parquet"
                self._writers[number] = pq.ParquetWriter(path, encoded.schema, compression="zstd")
            if not chosen.num_rows:
                continue
            self._writers[number].write_batch(chosen)
            self.labels[number] += np.bincount(chosen.column(self._label).to_numpy(), minlength=2)
            for column, array in zip(chosen.schema.names, chosen.columns, strict=True):
                self._add(f"{name} {column}", column, array)

    def _add(self, key: str, column: str, array: pa.Array) -> None:
        if pa.types.is_list(array.type):
            lengths = pc.list_value_length(array).to_numpy()
            self.longest[column] = max(self.longest.get(column, 0), int(lengths.max()))
            self._digests[f"{key} lengths"].update(lengths.astype("<i8").tobytes())
            array = array.flatten()
        values = array.to_numpy(zero_copy_only=False)
        self._digests[key].update(values.astype(values.dtype.newbyteorder("<")).tobytes())

    def fingerprint(self, schema: Schema) -> str:
        """SHA-256 over the schema and all encoded values, whatever the batches they came in."""
        whole = hashlib.sha256(schema.without_counts().to_json().encode())
        for key, digest in sorted(self._digests.items()):
            whole.update(f"{key} {digest.hexdigest()}\n".encode())
        return whole.hexdigest()
