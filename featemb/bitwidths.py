"""Bit widths of groups of rows within a limit of bytes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from featemb.errors import BudgetError
from featemb.parts.mixed import group_bytes


def fit_bits(
    wanted: Sequence[int],
    shares: Sequence[float],
    sizes: Sequence[int],
    width: int,
    limit: int,
    most: int,
) -> tuple[int, ...]:
    """Change the bit widths of groups, as little as needed, to use a limit of bytes.

    A bit more divides the squared error of a number by four: of the group with share p of the
    lookups and b bits, a byte is worth ``p 4^-b / rows``. Bits are taken from where they are worth
    least until the limit holds, then given to where they are worth most while they fit.

    Args:
        wanted: bits of each group.
        shares: share of the lookups of each group.
        sizes: rows of each group.
        width: numbers a row.
        limit: bytes of all codes.
        most: largest bit width.

    Raises:
        BudgetError: not even groups without bits fit.
    """
    if limit < 0:
        raise BudgetError(f"the limit is {limit} bytes below what no codes at all need", -limit)
    bits = list(wanted)

    def worth(group: int, bit: int) -> float:
        return float(shares[group]) * 4.0**-bit / sizes[group]

    def cost(group: int, bit: int) -> int:
        return group_bytes([sizes[group]], width, [bit])

    used = group_bytes(list(sizes), width, bits)
    heap = [(worth(g, bits[g] - 1), -g) for g in range(len(bits)) if bits[g]]
    heapq.heapify(heap)
    while used > limit:
        _, group = heapq.heappop(heap)
        group = -group
        used -= cost(group, bits[group]) - cost(group, bits[group] - 1)
        bits[group] -= 1
        if bits[group]:
            heapq.heappush(heap, (worth(group, bits[group] - 1), -group))
    heap = [(-worth(g, bits[g]), g) for g in range(len(bits)) if bits[g] < most]
    heapq.heapify(heap)
    while heap:
        _, group = heapq.heappop(heap)
        more = cost(group, bits[group] + 1) - cost(group, bits[group])
        if used + more > limit:
            continue
        used += more
        bits[group] += 1
        if bits[group] < most:
            heapq.heappush(heap, (-worth(group, bits[group]), group))
    return tuple(bits)
