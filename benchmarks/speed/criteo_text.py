"""A made-up file in the format of Criteo's ``train.txt``, of any length, for speed and scale.

Ids of the 26 fields follow a bounded Zipf law over the real cardinalities of the Kaggle file
(33,762,577 values) and are written as 8 hexadecimal digits; the 13 integers are geometric. The
values mean nothing: never a claim of accuracy. Run
``python -m featemb.benchmarks.speed.criteo_text FILE --rows N``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from featemb.files import replacing

# Distinct values of C1 to C26 in the Kaggle file.
CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27),
    *(14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
INTEGERS = 13
# Shares of empty cells, field by field in turn; the real file has empty cells in most fields.
_EMPTY = (0.0, 0.03, 0.12, 0.45)
_CHUNK = 200_000
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def write(
    path: Path,
    rows: int,
    seed: int = 0,
    cardinalities: Sequence[int] = CARDINALITIES,
    integers: int = INTEGERS,
    zipf: float = 1.1,
) -> None:
    """Write a file: label, integers, hexadecimal fields, separated by tabs; no header.

    Args:
        path: the file; it appears whole or not at all.
        rows: number of lines.
        seed: of all draws.
        cardinalities: largest number of distinct values of each hexadecimal field.
        integers: number of integer columns.
        zipf: exponent of the ids' law, not 1.
    """
    names = ["label", *(f"I{n + 1}" for n in range(integers))]
    names += [f"C{n + 1}" for n in range(len(cardinalities))]
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    kinds = [pa.int64()] * (1 + integers) + [pa.string()] * len(cardinalities)
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with (
        replacing(path) as temporary,
        csv.CSVWriter(temporary, schema, write_options=options) as writer,
    ):
        for number, start in enumerate(range(0, rows, _CHUNK)):
            random = np.random.default_rng([seed, number])
            count = min(_CHUNK, rows - start)
            columns = [pa.array((random.random(count) < 0.26).astype(np.int64))]
            columns += [_integers(random, count, place) for place in range(integers)]
            for place, size in enumerate(cardinalities):
                ids = zipf_ids(random, count, size, zipf)
                columns.append(_words(ids, place, random.random(count) < _EMPTY[place % 4]))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def zipf_ids(
    random: np.random.Generator, count: int, size: int, exponent: float
) -> npt.NDArray[np.int64]:
    """Draw ids ``0 <= id < size`` of a bounded Zipf law, by the inverse of its continuous form."""
    power = 1.0 - exponent
    draws = random.random(count)
    ranks = (1.0 + draws * ((size + 1.0) ** power - 1.0)) ** (1.0 / power)
    ids: npt.NDArray[np.int64] = np.minimum(ranks.astype(np.int64) - 1, size - 1)
    return ids


def _integers(random: np.random.Generator, count: int, place: int) -> pa.Array:
    values = random.geometric(1.0 / (3 + 40 * place), count) - 2
    return pa.array(values, mask=random.random(count) < _EMPTY[place % 4])


def _words(ids: npt.NDArray[np.int64], place: int, empty: npt.NDArray[np.bool_]) -> pa.Array:
    """Write ids as 8 digits: an odd multiple modulo 2^32, so that distinct ids stay distinct."""
    numbers = (ids.astype(np.uint64) * 2654435761 + place * 97) & 0xFFFFFFFF
    shifts = np.arange(28, -1, -4, dtype=np.uint64)
    digits = _HEX[((numbers[:, None] >> shifts) & 15).astype(np.intp)]
    offsets = np.arange(0, 8 * len(ids) + 1, 8, dtype=np.int32)
    whole = pa.StringArray.from_buffers(
        len(ids), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits))
    )
    return pc.if_else(pa.array(empty), pa.scalar(None, pa.string()), whole)


def main() -> None:
    """Write a file from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.file, options.rows, options.seed)


if __name__ == "__main__":
    main()
