"""CTR models over any embedding layer: ``build("deepfm", embedding=layer, numeric=13)``.

One file a model; a model registers itself, and every list is read from the registry.
"""

if __name__ != "featemb.models":
    raise ImportError(
        "this folder holds featemb.models: use `import featemb.models`. For a third-party package "
        "named `models`, run Python with -P (or PYTHONSAFEPATH=1), so that the current folder "
        "does not shadow it."
    )

from featemb.models.base import CTRModel, ModelContext
from featemb.models.config import ModelConfig
from featemb.models.registry import build, config_fields, find, names, register
from featemb.models.saved import load, save

__all__ = [
    "CTRModel",
    "ModelConfig",
    "ModelContext",
    "build",
    "config_fields",
    "find",
    "load",
    "names",
    "register",
    "save",
]
