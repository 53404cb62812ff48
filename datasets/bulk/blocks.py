"""First pass: a piece of the source becomes blocks of codes and sorted words.

A block of R rows is a file of rows (R codes a column, numbers after their transform, labels) and a
file of words. Code 0 is a missing cell, code k the k-th word of the block's sorted list. Codes
have as few bytes as the list needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featemb.datasets.bulk.storage import Seal, get_batch, put_array, put_batch, put_lists
from featemb.datasets.recipe import PARTS, Recipe
from featemb.datasets.source import Piece, Transform, require_columns
from featemb.datasets.splitting import Parts
from featemb.datasets.vocabulary import Moments, labels, numbers, plain
from featemb.errors import DataError

Codes = npt.NDArray[np.unsignedinteger[Any]]
USERS = "user"  # the key of the user column's words; features' keys are their positions
_SPLIT = "split"


@dataclass(frozen=True)
class Work:
    """What every process knows of an encoding.

    Attributes:
        recipe: the columns.
        transform: of every batch of the source.
        folder: where files are made.
    """

    recipe: Recipe
    transform: Transform
    folder: Path

    @property
    def keys(self) -> dict[str, str]:
        """Key -> column, of all columns that are coded."""
        found = {str(n): c.name for n, c in enumerate(self.recipe.categorical)}
        return found | ({USERS: self.recipe.user} if self.recipe.user is not None else {})

    @property
    def result(self) -> Path:
        """The folder that becomes the encoded data."""
        return self.folder / "result"

    def rows(self, block: str) -> Path:
        """The file of a block's rows."""
        return self.folder / "blocks" / f"{block}.rows"

    def words(self, block: str) -> Path:
        """The file of a block's words."""
        return self.folder / "blocks" / f"{block}.words"

    def counts(self, block: str) -> Path:
        """The file of the training counts of a block's words, all columns one after another."""
        return self.folder / "blocks" / f"{block}.counts"

    def seals(self, paths: dict[Path, Seal]) -> dict[str, Seal]:
        """Return sizes and checksums by the paths' names inside of the folder."""
        return {path.relative_to(self.folder).as_posix(): one for path, one in paths.items()}


def parse(work: Work, number: int, piece: Piece) -> dict[str, Any]:
    """Code a piece, and return its blocks' names, rows, and number and bytes of words by column.

    Raises:
        DataError: the rows cannot be read, or do not fit the recipe.
    """
    blocks: list[dict[str, Any]] = []
    files: dict[Path, Seal] = {}
    row = 0
    for batch in piece.batches():
        name = f"{number:06}-{len(blocks):03}"
        try:
            batch = work.transform(batch)
            if not batch.num_rows:
                continue
            columns, words = _coded_batch(work, batch, piece, row)
        except (DataError, pa.ArrowException) as error:
            raise DataError(f"{piece.where()}: {error}") from error
        files[work.rows(name)] = put_batch(work.rows(name), columns)
        files[work.words(name)] = put_lists(work.words(name), words)
        sizes = [len(words[key]) for key in work.keys]
        weights = [words[key].nbytes for key in work.keys]
        kinds = [str(words[key].type) for key in work.keys]
        block = {"name": name, "rows": batch.num_rows, "words": sizes, "bytes": weights}
        blocks.append(block | {"kinds": kinds})
        row += batch.num_rows
    return {"blocks": blocks, "files": work.seals(files)}


def _coded_batch(
    work: Work, batch: pa.RecordBatch, piece: Piece, row: int
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    recipe = work.recipe
    needed = [*(column.name for column in recipe.columns), recipe.label]
    extra = [name for name in (recipe.user, recipe.split.column) if name is not None]
    require_columns(batch, [*needed, *extra], "the table")
    columns: dict[str, pa.Array] = {}
    words: dict[str, pa.Array] = {}
    for key, name in work.keys.items():
        codes, words[key] = coded(batch.column(name), name)
        columns[key] = pa.array(codes)
        if key == USERS:
            words["first"] = pa.array(_first_rows(codes, len(words[key])))
    for place, column in enumerate(recipe.numeric):
        columns[f"n{place}"] = pa.array(numbers(batch, column))
    columns["label"] = pa.array(_labels(batch, recipe.label, piece, row))
    if recipe.split.column is not None:
        columns[_SPLIT] = batch.column(recipe.split.column)
    return columns, words


def _labels(batch: pa.RecordBatch, name: str, piece: Piece, row: int) -> npt.NDArray[np.int8]:
    try:
        return labels(batch, name)
    except DataError:  # once more, with the number of the row in the source
        return labels(batch, name, piece.rows_before() + row)


def coded(array: pa.Array, name: str) -> tuple[Codes, pa.Array]:
    """Return codes ``[len(array)]`` and the sorted words: code k is word k - 1, 0 is missing.

    Raises:
        DataError: the type of column ``name`` is not supported.
    """
    if pa.types.is_nested(array.type) or pa.types.is_null(array.type):
        array = plain(array, name)
    own = array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)
    # Values that are told apart may mean the same once they are plain: missing ones do.
    again = pc.dictionary_encode(plain(own.dictionary, name))
    order = pc.sort_indices(again.dictionary).to_numpy()
    code = np.zeros(len(order) + 1, np.min_scalar_type(len(order)))
    code[order + 1] = np.arange(1, len(order) + 1)
    ranks = code[_slots(again.indices)]
    codes: Codes = np.concatenate([code[:1], ranks])[_slots(own.indices)]
    return codes, again.dictionary.take(pa.array(order))


def _slots(indices: pa.Array) -> npt.NDArray[np.int32]:
    """Indices with 0 for null, and one more than they say."""
    indices = indices.cast(pa.int32())
    if indices.null_count:
        indices = pc.fill_null(indices, -1)
    slots: npt.NDArray[np.int32] = indices.to_numpy() + np.int32(1)
    return slots


def _first_rows(codes: Codes, words: int) -> npt.NDArray[np.int64]:
    """Row in which each word comes first."""
    first = np.zeros(words + 1, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last write stays
    return first[1:]


def split_column(work: Work, block: str, name: str) -> pa.RecordBatch:
    """Return the column that the rows are split by, or, without one, rows without columns."""
    rows = get_batch(work.rows(block))
    if _SPLIT not in rows.schema.names:
        return rows
    return pa.RecordBatch.from_pydict({name: rows.column(_SPLIT)})


def count(work: Work, block: str, words: list[int], part: Parts) -> dict[str, Any]:
    """Count the training rows of a block by word; return moments and labels by split.

    Args:
        work: the encoding.
        block: name of the block.
        words: number of words of each column.
        part: int8 ``[rows]``, the split of each row.
    """
    rows = get_batch(work.rows(block))
    train = np.flatnonzero(part == 0)
    found = []
    if work.recipe.hashing is None:
        for place, size in zip(range(len(work.recipe.categorical)), words, strict=False):
            codes = rows.column(str(place)).to_numpy()[train]
            found.append(np.bincount(codes, minlength=size + 1).astype(np.int32))
    moments = []
    for place in range(len(work.recipe.numeric)):
        one = Moments()
        one.add(rows.column(f"n{place}").to_numpy()[train])
        moments.append([one.count, one.mean, one.squares])
    label = rows.column("label").to_numpy()
    table = [np.bincount(label[part == n], minlength=2).tolist() for n in range(len(PARTS))]
    path = work.counts(block)
    counts = np.concatenate(found) if found else np.empty(0, np.int32)
    files = work.seals({path: put_array(path, counts)})
    return {"moments": moments, "labels": table, "files": files}
