"""Where two tensors differ, and how to make the one from the other.

A tensor is compared as it is stored, byte by byte. Its rows are the places of its first axis; some
rows in succession are a *unit*, of which a difference says "this one, and now it is so".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featemb.errors import FormatError

_ROWS_TO_A_UNIT = (1, 4, 16, 64)
_LONGEST_ROW = 1 << 14
_BLOCK_BYTES = 1 << 24


class Change(NamedTuple):
    """Units of a tensor that changed.

    Attributes:
        places: numbers of the units, ascending, int32 ``[n]`` (int64 where that is too short).
        units: what they are now, uint8 ``[n, bytes of a unit]``; a last one that is shorter is
            filled up with zeros.
    """

    places: Tensor
    units: Tensor


def changed(old: Tensor, new: Tensor) -> Change | None:
    """Return what changed between tensors of one dtype and shape; None where all of it is shorter.

    The number of rows to a unit is that which takes the fewest bytes: few for rows that change one
    by one, more for codes that change together because they share a scale.
    """
    before, after = as_bytes(old), as_bytes(new)
    row = _row_bytes(old)
    rows = _differing(before, after, row)
    choices = []
    for some in _ROWS_TO_A_UNIT:
        places = rows if some == 1 else torch.unique_consecutive(rows // some)
        wide = len(before) // (row * some) >= 1 << 31
        choices.append((len(places) * (row * some + (8 if wide else 4)), some, places))
    size, some, places = min(choices, key=lambda one: one[:2])
    if size >= len(after) and len(rows):
        return None
    unit = row * some
    whole = len(after) // unit
    units = torch.zeros(len(places), unit, dtype=torch.uint8)
    inner = places[places < whole]
    units[: len(inner)] = after[: whole * unit].view(whole, unit)[inner]
    if len(inner) < len(places):
        units[-1, : len(after) - whole * unit] = after[whole * unit :]
    return Change(places.to(torch.int64 if whole >= 1 << 31 else torch.int32), units)


def patched(old: Tensor, change: Change, name: str) -> Tensor:
    """Return a copy of a tensor in which the units of a change are as it says.

    Raises:
        FormatError: the change does not fit the tensor.
    """
    places, units = change.places.long(), change.units
    fits = units.dtype == torch.uint8 and units.dim() == 2 and units.shape[1] > 0
    if not fits or places.shape != units.shape[:1]:
        raise FormatError(f"the delta's change of {name!r} is malformed")
    new = old.clone()
    flat, unit = as_bytes(new), units.shape[1]
    whole, rest = divmod(len(flat), unit)
    last = whole + (rest > 0) - 1
    if len(places) and not (int(places.min()) >= 0 and int(places.max()) <= last):
        raise FormatError(f"the delta changes unit {int(places.max())} of {name!r}, of {last + 1}")
    inner = places < whole
    flat[: whole * unit].view(whole, unit)[places[inner]] = units[inner]
    for tail in units[~inner]:
        flat[whole * unit :] = tail[:rest]
    return new


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, uint8 ``[bytes]``, which it shares."""
    return tensor.reshape(-1).view(torch.uint8)


def _row_bytes(tensor: Tensor) -> int:
    """Bytes of a row; of a single number where rows are so long that they are none."""
    rows = tensor.shape[0] if tensor.dim() else 1
    row = tensor.numel() * tensor.element_size() // max(1, rows)
    return row if 0 < row <= _LONGEST_ROW else tensor.element_size()


def _differing(before: Tensor, after: Tensor, row: int) -> Tensor:
    """Return the numbers of the rows that differ, int64 ascending."""
    found = []
    step = max(1, _BLOCK_BYTES // row) * row
    for start in range(0, len(before), step):
        one, other = before[start : start + step], after[start : start + step]
        if not torch.equal(one, other):
            differs = (one != other).view(-1, row).any(1)
            found.append(differs.nonzero()[:, 0] + start // row)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
