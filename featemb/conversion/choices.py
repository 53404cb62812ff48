"""One codec a table within a byte limit: the candidates, their errors, and the best of them.

Of T tables, each gets one of its candidates j with b_tj bytes and an expected squared error e_tj
a sample; the sum of the errors is to be smallest while the sum of the bytes is within the limit
(a multiple-choice knapsack; Sinha and Zoltners, Operations Research 27(3), 1979). Tables are added
one by one, and of the partial choices those stay that no other one beats in both sums. The result
is the optimum over the candidates; only where more than `_MOST` partial choices are left of one
step, the best of each of as many equal spans of bytes stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featemb.codecs.base import Codec, codec_by_name
from featemb.conversion.held import Held, Table, encode
from featemb.errors import BudgetError, DataError

_MOST = 1 << 15
_SAMPLE_ROWS = 4096
_BLOCK = 64  # rows that share a scale lie side by side, so the sample keeps them together
_SEED = 0x5EED
_SMALL_SHARE = 0.02
_NEAR = (0.4, 1.5)
_FINE = (None, "fp16", "int8")
_SCALAR = ("fp16", "int8", "int4", "int2", "binary(bits=1)")


@dataclass(frozen=True)
class Choice:
    """One way to store a table.

    Attributes:
        codec: the text of the codec; None leaves the table as it is.
        bytes: of the stored form.
        error: expected squared error of what a sample reads of it.
    """

    codec: str | None
    bytes: int
    error: float


def solve(tables: Sequence[Held], limit: int, codecs: Sequence[str] | None) -> list[str | None]:
    """Return the codec of each table, or None where it stays, for the least error within a limit.

    Args:
        tables: the tables.
        limit: bytes of all of them together.
        codecs: the candidates; a bare "pq", "rq", "svd" or "binary" stands for several sizes. None
            takes scalar formats and, as codebooks take long to find, sizes of "pq" near those that
            scalar formats alone would get, for tables of 2% of the bytes or more.

    Raises:
        BudgetError: the smallest candidates together take more.
    """
    texts = [ladder(one.shape[1], codecs) for one in tables]
    books = [[] if codecs is not None else _codebooks(one, tables) for one in tables]
    floor = sum(_smallest(one, [*a, *b]) for one, a, b in zip(tables, texts, books, strict=True))
    if floor > limit:
        raise BudgetError(
            f"the tables need at least {floor:,} bytes by these codecs, {limit:,} are left for "
            "them",
            floor,
        )
    choices = [_choices(one, own) for one, own in zip(tables, texts, strict=True)]
    if any(books):
        for one, own, more in zip(
            tables, choices, _near(tables, choices, books, limit), strict=True
        ):
            own += _choices(one, more)[1:]
    return [one.codec for one in best([_undominated(own) for own in choices], limit)]


def _codebooks(held: Held, tables: Sequence[Held]) -> list[str]:
    large = held.before >= _SMALL_SHARE * sum(one.before for one in tables)
    return _sizes("pq", held.shape[1]) if large else []


def _smallest(held: Held, texts: Sequence[str]) -> int:
    return min([held.before, *(held.stored_bytes(codec_by_name(text)) for text in texts)])


def _near(
    tables: Sequence[Held],
    choices: Sequence[list[Choice]],
    books: Sequence[list[str]],
    limit: int,
) -> list[list[str]]:
    """Return the codebooks of about the size that each table gets without them; else all."""
    scalar = [_undominated(own) for own in choices]
    if sum(own[0].bytes for own in scalar) > limit:
        return list(books)
    near = []
    for held, chosen, own in zip(tables, best(scalar, limit), books, strict=True):
        sizes = {text: held.stored_bytes(codec_by_name(text)) for text in own}
        low, high = (chosen.bytes * share for share in _NEAR)
        fine = chosen.codec in _FINE  # nothing that a codebook could better
        near.append([text for text in own if not fine and low <= sizes[text] <= high])
    return near


def ladder(width: int, codecs: Sequence[str] | None) -> list[str]:
    """Return the texts of the codecs to try for rows of a width; None takes scalar formats."""
    found: list[str] = []
    for text in _SCALAR if codecs is None else codecs:
        found += _sizes(text.strip(), width)
    return list(dict.fromkeys(found))


def _sizes(text: str, width: int) -> list[str]:
    parts = sorted({max(1, width // by) for by in (2, 4, 8, width)})
    if text == "pq":
        # 16 codewords where the 256 of 8 bits would outweigh the codes, as in tables of middle size
        few = [f"pq(parts={one}, bits=4)" for one in (parts[-1], 1)]
        return [f"pq(parts={one})" for one in parts] + few
    if text == "rq":
        return [f"rq(stages={one})" for one in (1, 2, 4)]
    if text == "svd":
        return [f'svd(rank={one}, inner="int8")' for one in parts]
    if text == "binary":
        return [f"binary(bits={one})" for one in (1, 2, 3, 4)]
    return [text]


def _choices(held: Held, texts: Sequence[str]) -> list[Choice]:
    """Return a table's ways to be stored: as it is, and by each codec that makes it smaller."""
    found = [Choice(None, held.before, 0.0)]
    samples = [_sample(*one) for one in held.matrices()]
    for text in texts:
        codec = codec_by_name(text)
        size = held.stored_bytes(codec)
        if size >= held.before:
            continue
        try:
            error = sum(_error(codec, *one) for one in samples)
        except DataError:  # numbers beyond the format: no candidate for this table
            continue
        found.append(Choice(text, size, error * _reads(held)))
    return found


def _reads(held: Held) -> float:
    """Return how many rows of a table a sample reads, up to a factor that all tables share."""
    if isinstance(held, Table) and held.counts is not None:
        return float(held.counts.sum())
    return 1.0


def _sample(table: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if len(table) <= _SAMPLE_ROWS:
        return table, weights
    generator = torch.Generator().manual_seed(_SEED)
    blocks = torch.randperm(len(table) // _BLOCK, generator=generator)[: _SAMPLE_ROWS // _BLOCK]
    rows = (blocks.sort().values[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    rows = rows.to(table.device)
    return table[rows], None if weights is None else weights[rows]


def _error(codec: Codec, table: Tensor, weights: Tensor | None) -> float:
    """Return the mean squared error of a row, each weighed."""
    part = encode(codec, table, weights)
    found = part(torch.arange(len(table), device=table.device))
    squares = (found - table).double().square().sum(1)
    if weights is None or not float(weights.sum()):
        return float(squares.mean())
    return float((squares * weights).sum() / weights.sum())


def _undominated(choices: Sequence[Choice]) -> list[Choice]:
    """Keep the choices that no other one beats in bytes and in error, the smallest first."""
    kept: list[Choice] = []
    for one in sorted(choices, key=lambda choice: (choice.bytes, choice.error)):
        if not kept or one.error < kept[-1].error:
            kept.append(one)
    return kept


def best(choices: Sequence[Sequence[Choice]], limit: int) -> list[Choice]:
    """Return one choice a table: the least sum of errors whose bytes are within a limit.

    Args:
        choices: of each table, none beaten by another one in both; the smallest fit together.
        limit: bytes.
    """
    rest = np.cumsum([0, *(min(c.bytes for c in own) for own in reversed(choices))])[::-1]
    size, error = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for own, after in zip(choices, rest[1:], strict=True):
        bytes_, errors = np.array([c.bytes for c in own]), np.array([c.error for c in own])
        sizes = (size[:, None] + bytes_).ravel()
        sums = (error[:, None] + errors).ravel()
        kept = _frontier(sizes, sums, limit - int(after))
        steps.append((kept // len(own), kept % len(own)))
        size, error = sizes[kept], sums[kept]
    place = int(np.argmin(error))
    chosen = []
    for (parents, numbers), own in zip(reversed(steps), reversed(choices), strict=True):
        chosen.append(own[int(numbers[place])])
        place = int(parents[place])
    return chosen[::-1]


def _frontier(
    sizes: npt.NDArray[np.int64], errors: npt.NDArray[np.float64], most: int
) -> npt.NDArray[np.int64]:
    """Return the places of what nothing beats among what takes at most so many bytes."""
    order = np.lexsort((errors, sizes))
    order = order[sizes[order] <= most]
    lowest = np.minimum.accumulate(errors[order])
    kept = order[np.r_[True, lowest[1:] < lowest[:-1]]]
    if len(kept) > _MOST:  # errors fall along it: the last one of a span is its best
        spans = (sizes[kept] * (_MOST / (most + 1))).astype(np.int64)
        kept = kept[np.r_[True, spans[1:] != spans[:-1]] | np.r_[spans[1:] != spans[:-1], True]]
    return kept.astype(np.int64)
