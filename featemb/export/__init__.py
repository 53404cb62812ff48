"""Export to serving: one file a target, checked when it is written, when it is loaded, and later.

::

    fe.export(model, "model.pt2", to="pt2", encoder=encoder, examples=rows)
    fe.load("model.pt2").raw(rows)
    featemb.export.check("model.pt2")      # from featemb.export import check
"""

from featemb.export.artefact import Artefact
from featemb.export.checking import TARGETS, Check, check
from featemb.export.encoder import Encoder, RawFeature, RawNumber
from featemb.export.exporting import export
from featemb.export.loading import load
from featemb.export.tokens import MISSING, text_token

__all__ = [
    "MISSING",
    "TARGETS",
    "Artefact",
    "Check",
    "Encoder",
    "RawFeature",
    "RawNumber",
    "check",
    "export",
    "load",
    "text_token",
]
