"""Raw cells to tokens: the one step before a graph that a server does by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from featemb.errors import DataError, SchemaError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Cells = Literal["integer", "text", "float"]
Tokens = npt.NDArray[np.int64]
MISSING = -(1 << 63)
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def text_token(text: str) -> int:
    """FNV-1a (64 bits; Fowler, Noll and Vo) of a text's UTF-8 bytes, as a signed number.

    An empty text is a missing one.
    """
    if not text:
        return MISSING
    value = _FNV_OFFSET
    for byte in text.encode():
        value = ((value ^ byte) * _FNV_PRIME) & ((1 << 64) - 1)
    return value - (1 << 64) if value >> 63 else value


def value_tokens(values: Any, cells: Cells, name: str) -> Tokens:
    """Return the tokens int64 ``[V]`` of values or an Arrow array; null is missing.

    Raises:
        SchemaError: the values are no such cells.
    """
    import pyarrow as pa

    try:
        array = values if isinstance(values, pa.Array) else pa.array(values)
        return _TOKENS[cells](array, name)
    except pa.ArrowException as error:
        raise SchemaError(f"column {name!r} holds no {cells} cells: {error}") from error


def _integers(array: pa.Array, name: str) -> Tokens:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_floating(kind):  # pandas holds integers with missing ones as floats
        wide = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
        whole = (np.floor(wide) == wide) & (np.abs(wide) < 2.0**63)
        return np.where(whole, np.where(whole, wide, 0).astype(np.int64), MISSING)
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"column {name!r} holds {kind}, the model was trained on integers")
    if pa.types.is_uint64(kind):  # beyond 63 bits there is nothing that training knew
        fits = pc.less(array, pa.scalar(1 << 63, kind))
        array = pc.if_else(fits, array, pa.scalar(None, kind))
    plain = array.cast(pa.int64())
    found: Tokens = pc.fill_null(plain, MISSING).to_numpy(zero_copy_only=False)
    return found


def _floats(array: pa.Array, name: str) -> Tokens:
    import pyarrow as pa

    kind = array.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"column {name!r} holds {kind}, the model was trained on floats")
    wide = array.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    bits = (wide + 0.0).view(np.int64)  # -0 becomes 0
    return np.where(np.isnan(wide), MISSING, bits)


def _texts(array: pa.Array, name: str) -> Tokens:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_nested(array.type):
        raise SchemaError(f"column {name!r} holds {array.type}, the model was trained on texts")
    unique = pc.dictionary_encode(pc.fill_null(array.cast(pa.large_string()), ""))
    tokens = _hashed(unique.dictionary)
    found: Tokens = tokens[unique.indices.to_numpy()]
    return found


def _hashed(texts: pa.Array) -> Tokens:
    """`text_token` of many texts at once, a byte of each at a time."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
    _, offsets, whole = texts.buffers()  # of large_string: int64 offsets
    data = np.frombuffer(whole or b"", np.uint8)
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts)]
    order = np.argsort(-lengths, kind="stable")  # the longest first: those left are a prefix
    starts = starts[order]
    ordered = lengths[order]
    state = np.full(len(lengths), _FNV_OFFSET, np.uint64)
    for byte in range(int(ordered[0]) if len(ordered) else 0):
        left = int(np.searchsorted(-ordered, -byte, side="left"))
        state[:left] = (state[:left] ^ data[starts[:left] + byte]) * np.uint64(_FNV_PRIME)
    tokens = np.empty(len(lengths), np.int64)
    tokens[order] = state.view(np.int64)
    return np.where(lengths == 0, MISSING, tokens)


_TOKENS = {"integer": _integers, "text": _texts, "float": _floats}


def table_of(rows: pa.Table | pd.DataFrame | Mapping[str, Any]) -> pa.Table:
    """Return raw rows as an Arrow table.

    Raises:
        DataError: they are none, or there are no rows.
    """
    import pyarrow as pa

    try:
        if isinstance(rows, Mapping):
            rows = pa.table({name: pa.array(cells) for name, cells in rows.items()})
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows)
    except (pa.ArrowException, AttributeError, TypeError) as error:
        raise DataError(
            f"rows must be a DataFrame, an Arrow table or a dict of columns: {error}"
        ) from error
    if not table.num_rows:
        raise DataError("there are no rows")
    return table


def column(table: pa.Table, name: str) -> pa.Array:
    """Return one column of a table in one piece, dictionaries resolved.

    Raises:
        DataError: there is none of that name.
    """
    import pyarrow as pa

    if name not in table.column_names:
        raise DataError(f"the rows lack the column {name!r}")
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # what several chunks become differs between versions
        array = pa.concat_arrays(array.chunks)
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def bag_tokens(array: pa.Array, cells: Cells, separator: str, name: str) -> tuple[Tokens, Tokens]:
    """Return the tokens int64 ``[N]`` and lengths int64 ``[B]`` of cells of several values.

    Raises:
        SchemaError: the cells are neither lists nor texts with a separator.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if pa.types.is_null(kind):
        array = array.cast(pa.list_(pa.null()))
    elif separator and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        # an empty text is an empty list
        text = pc.if_else(pc.equal(array, ""), pa.scalar(None, kind), array)
        array = pc.split_pattern(text, separator)
    elif not lists:
        wanted = f"texts with {separator!r} between values, or lists" if separator else "lists"
        raise SchemaError(f"column {name!r} holds {kind}, the model was trained on {wanted}")
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    flat = pc.list_flatten(array)
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    if separator and not lists and not pa.types.is_null(kind):
        flat = pc.utf8_trim_whitespace(flat)
    return value_tokens(flat, cells, name), lengths.to_numpy(zero_copy_only=False)


def numbers(array: pa.Array, name: str) -> npt.NDArray[np.float64]:
    """Return a numeric column as fp64 ``[B]``, NaN where it is missing.

    Raises:
        DataError: a value is infinite or not a number.
    """
    import pyarrow as pa

    try:
        values: npt.NDArray[np.float64] = (
            array.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        )
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} is not numeric: {error}") from error
    if np.isinf(values).any():
        raise DataError(f"column {name!r} holds an infinite value; numbers must be finite")
    return values
