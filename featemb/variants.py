"""`Variants`: several forms of one embedding layer, compared in a search.

Shape letters: B samples, V variants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor


class Variants(Protocol):
    """V forms of a layer; feature f has ``widths[v][f]`` numbers in form v, the rest being zero."""

    @property
    def widths(self) -> Sequence[tuple[int, ...]]:
        """Widths of the features in every form."""

    def vectors(self, ids: Any) -> Iterator[Tensor]:
        """Look ids up once; yield the embedded batch ``[B, sum(widths[v])]`` of every form."""
