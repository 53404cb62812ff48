"""`Spec`: the methods and the codec of a layer, and their text (see `featemb.grammar`).

The first item is a method. Further methods store the rows of the one before, and a last item may be
a codec for the frozen rows: ``"unified(lookups=2)+int4"``, ``"qr+mpe"``, ``"hash+magnitude+int8"``.
What can follow what is told, and checked, in `featemb.composition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featemb.codecs.base import Codec
from featemb.composition import check_composition
from featemb.config import names
from featemb.errors import ConfigError
from featemb.grammar import read, write
from featemb.layer import MethodConfig


@dataclass(frozen=True)
class Spec:
    """A method, the methods that store its rows, and the codec of the frozen rows.

    Attributes:
        method: how the layer trains.
        codec: how ``freeze()`` stores rows; None keeps fp32.
        inner: methods that store the rows of the one before (see `featemb.composition`).

    Raises:
        ConfigError: these do not go together; the message says why.
    """

    method: MethodConfig
    codec: Codec | None = None
    inner: tuple[MethodConfig, ...] = ()

    def __post_init__(self) -> None:
        check_composition(self.methods, self.codec)

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """All methods, from outside to inside."""
        return (self.method, *self.inner)

    def with_methods(self, methods: Sequence[MethodConfig]) -> Spec:
        """Return the spec with other methods and the same codec."""
        return Spec(methods[0], self.codec, tuple(methods[1:]))

    def at_width(self, dim: int) -> Spec:
        """Return the spec for another output width (first-order terms use width 1)."""
        first, *inner = (method.at_width(dim) for method in self.methods)
        stay = [one for one, was in zip(inner, self.inner, strict=True) if one.axis == was.axis]
        codec = None if any(one.axis == "format" for one in (first, *stay)) else self.codec
        return Spec(first, codec, tuple(stay))

    def __str__(self) -> str:
        items = [*self.methods, *([self.codec] if self.codec else [])]
        return "+".join(write(item) for item in items)


def parse(text: str) -> Spec:
    """Read a spec such as ``"unified(lookups=2)+int8"``.

    Raises:
        ConfigError: a name, setting or value is not allowed, the text does not follow the grammar,
            or the items do not go together; the message shows where or why.
    """
    items = read(text)
    last = items.pop() if isinstance(items[-1], Codec) else None
    codec = last if isinstance(last, Codec) else None
    methods = [item for item in items if isinstance(item, MethodConfig)]
    if len(methods) < len(items) or not methods:
        wrong = next((item for item in items if isinstance(item, Codec)), codec)
        assert wrong is not None
        raise ConfigError(
            f"{text!r}: the codec {wrong.name!r} must be the last item, after a method; "
            f"methods: {', '.join(names('method'))}; codecs: {', '.join(names('codec'))}"
        )
    return Spec(methods[0], codec, tuple(methods[1:]))
