"""`FrozenEmbedding`: the deployable form of a layer, and its file.

A frozen layer holds buffers only and is made of parts; it needs neither the method's
configuration nor an optimizer. Its file (`featemb.package`) holds the tensors, and in its header
the schema, the widths and the tree of parts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featemb import kinds, package
from featemb.base import SourceEmbedding
from featemb.config import discover
from featemb.errors import FormatError
from featemb.memory import Memory, module_bytes
from featemb.parts import Part, Source
from featemb.schema import Schema


class FrozenEmbedding(SourceEmbedding):
    """A layer of buffers only; called exactly as the layer that it was frozen from.

    Args:
        schema: the features (their training counts are dropped).
        dim: output width asked for.
        widths: output width of each feature.
        source: the part that maps (ids, feature) to vectors.
    """

    def __init__(self, schema: Schema, dim: int, widths: Sequence[int], source: Source) -> None:
        super().__init__(schema.without_counts(), dim, widths)
        self.source = source

    def memory(self) -> Memory:
        """Bytes by part of the tensors that the layer holds."""
        return Memory(module_bytes(self), {})

    @torch.no_grad()
    def narrowed(self) -> FrozenEmbedding:
        """Return the layer without the columns that are zero for every id, by features.

        It shares this layer's tensors. A layer that uses all of its columns is returned itself.
        """
        used = self.source.used_widths(len(self.widths), max(self.widths))
        widths = tuple(min(pair) for pair in zip(self.widths, used, strict=True))
        if widths == self.widths:
            return self
        narrow = FrozenEmbedding(self.schema, self.dim, widths, self.source)
        return narrow.train(self.training)

    def describe(self) -> dict[str, Any]:
        """Return all but the tensors, JSON-able: what `rebuild` makes the layer from."""
        return {
            "schema": json.loads(self.schema.to_json()),
            "dim": self.dim,
            "widths": self.widths,
            "source": self.source.describe(),
        }

    @classmethod
    def rebuild(
        cls, tree: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = ""
    ) -> FrozenEmbedding:
        """Make a layer from `describe`'s tree and tensors named as in its state dict.

        Args:
            tree: the structure.
            tensors: of the layer, each name after the prefix.
            prefix: of the names.

        Raises:
            FormatError: a part is unknown, or a field or tensor is missing.
        """
        discover()  # parts are defined beside the methods and codecs that make them
        schema = Schema.from_json(json.dumps(tree["schema"]))
        source = Part.rebuild(tree["source"], tensors, prefix=f"{prefix}source.")
        if not isinstance(source, Source):
            raise FormatError(f"a {type(source).__name__} is no source of vectors")
        return cls(schema, tree["dim"], tree["widths"], source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layer to one file, atomically.

        Args:
            path: target; an existing file is replaced only by a complete new one.

        Raises:
            FormatError: the target's folder does not exist.
        """
        package.write(path, self.describe(), self.state_dict())


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> FrozenEmbedding:
    """Read a layer that `FrozenEmbedding.save` wrote.

    Raises:
        FormatError: the file is missing, not of this format, of a newer version, corrupt, or holds
            a whole model.
    """
    header, tensors = package.read(path, "embedding")
    return FrozenEmbedding.rebuild(header, tensors).to(device).eval()


kinds.register(
    kinds.Kind(
        "embedding",
        lambda module: isinstance(module, FrozenEmbedding),
        FrozenEmbedding.describe,
        lambda tree, tensors: FrozenEmbedding.rebuild(tree, tensors).eval(),
    )
)
