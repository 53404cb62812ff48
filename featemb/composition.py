"""Which methods and codecs go together, and why others do not.

A method decides one thing (its ``axis``): the rows that an id reads (*address*), how many numbers a
row has or keeps (*shape*), or the format in which rows are trained and stored (*format*). A
composition takes at most one of each, in this order; each method stores the rows of the one before
it, as if row numbers were the ids of one feature. A codec stores what is left as fp32 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from featemb.errors import ConfigError
from featemb.layer import Axis

if TYPE_CHECKING:
    from featemb.codecs.base import Codec
    from featemb.layer import MethodConfig

_ORDER: tuple[str, ...] = get_args(Axis)


def refusal(methods: Sequence[MethodConfig], codec: Codec | None) -> str:
    """Return why some methods and a codec do not go together, or ""."""
    for outer, inner in pairwise(methods):
        pair = f"{outer.name} + {inner.name}"
        if outer.axis == inner.axis:
            return f"{pair}: both decide the {outer.axis} of rows, a composition takes one of each"
        if _ORDER.index(outer.axis) > _ORDER.index(inner.axis):
            return (
                f"{pair}: {inner.name} decides the {inner.axis} of rows and must come before "
                f"{outer.name}, which decides their {outer.axis}"
            )
        if outer.own_rows:
            return f"{pair}: {outer.name} {outer.own_rows}"
    if codec is not None and methods[-1].axis == "format":
        return f"{methods[-1].name} + {codec.name}: {methods[-1].name} has a row format of its own"
    return ""


def check_composition(methods: Sequence[MethodConfig], codec: Codec | None) -> None:
    """Refuse methods and a codec that do not go together.

    Raises:
        ConfigError: says why.
    """
    if reason := refusal(methods, codec):
        raise ConfigError(reason)
