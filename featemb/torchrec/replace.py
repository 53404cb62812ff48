"""`replace_collections`: featemb layers in a built model, in place of TorchRec's collections."""

from __future__ import annotations

from typing import Any

from torch import nn

from featemb.spec import Spec
from featemb.torchrec.collection import FeatureEmbeddingBagCollection
from featemb.torchrec.rows import require_torchrec


def replace_collections(
    model: nn.Module, method: str | Spec = "full", **options: Any
) -> tuple[nn.Module, list[str]]:
    """Put stand-ins in the place of every ``EmbeddingBagCollection`` of a built model.

    Args:
        model: it is changed in place; where it is a collection itself, the stand-in is returned.
        method: as for `FeatureEmbeddingBagCollection.of`.
        options: likewise. A ratio holds for each collection, and so does a budget.

    Returns:
        The model, and the paths of the collections that were replaced.
    """
    require_torchrec()
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    if isinstance(model, EmbeddingBagCollection):
        return FeatureEmbeddingBagCollection.of(model, method, **options), [""]
    made: dict[int, FeatureEmbeddingBagCollection] = {}
    paths = []
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EmbeddingBagCollection):
                if id(child) not in made:
                    made[id(child)] = FeatureEmbeddingBagCollection.of(child, method, **options)
                setattr(parent, name, made[id(child)])
                paths.append(f"{path}.{name}".strip("."))
    return model, paths
