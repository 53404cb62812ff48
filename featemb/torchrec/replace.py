"""`replace_collections`: featemb layers in a built model, in place of TorchRec's collections."""

from __future__ import annotations

from typing import Any

from torch import nn

from featemb.conversion.copying import put_in_place
from featemb.errors import ConfigError
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

    Raises:
        ConfigError: there is none, or TorchRec is missing.
    """
    swaps = stand_ins(model, method, **options)
    named = model.named_modules(remove_duplicate=False)
    paths = [path for path, module in named if module in swaps]
    return put_in_place(model, swaps), paths


def stand_ins(
    model: nn.Module, method: str | Spec = "full", **options: Any
) -> dict[nn.Module, nn.Module]:
    """Return the stand-in of each ``EmbeddingBagCollection`` of a model.

    Raises:
        ConfigError: there is none, or TorchRec is missing.
    """
    require_torchrec()
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    found = [one for one in model.modules() if isinstance(one, EmbeddingBagCollection)]
    if not found:
        raise ConfigError(f"the {type(model).__name__} holds no EmbeddingBagCollection")
    return {one: FeatureEmbeddingBagCollection.of(one, method, **options) for one in found}
