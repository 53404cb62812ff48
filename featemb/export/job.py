"""`Job`: one export, as the targets get it; and the manifest that every file carries."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from featemb import kinds
from featemb.base import EmbeddingBase
from featemb.errors import ConfigError
from featemb.export.encoder import Encoder
from featemb.export.graph import Inputs, input_names
from featemb.layer import FeatureEmbedding
from featemb.memory import Memory, module_bytes, tensor_bytes
from featemb.schema import Schema

FORMAT = 1
# What a target's file depends on.
_LIBRARIES = {
    "safetensors": ("torch",),
    "pt2": ("torch",),
    "aoti": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "torchrec": ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu"),
}


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        net: the frozen layer or model, in eval mode on the CPU.
        schema: of its ids.
        numeric: number of its numeric columns.
        encoder: what travels along and turns raw rows into ids, or None.
        raw: whether the file takes tokens and raw numbers.
        inputs: example inputs in the file's form, two rows at least.
        manifest: see `manifest_of`.
        options: of the target.
    """

    net: nn.Module
    schema: Schema
    numeric: int
    encoder: Encoder | None
    raw: bool
    inputs: Inputs
    manifest: dict[str, Any]
    options: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the inputs, in order."""
        return input_names(self.schema, self.numeric, self.raw)


def frozen_form(served: nn.Module) -> nn.Module:
    """Return a layer or model as it is served, on the CPU; one that is already is itself.

    Raises:
        ConfigError: it holds no embedding layer.
    """
    if not layers_of(served):
        raise ConfigError(
            f"a {type(served).__name__} is no layer of featemb.embedding, no frozen layer and no "
            "model of featemb.models, and holds no layer: export one of these"
        )
    trained = [one for one in layers_of(served) if isinstance(one, FeatureEmbedding)]
    net = served
    if trained and (kinds.of(served) is not None or isinstance(served, FeatureEmbedding)):
        net = served.freeze()  # type: ignore[operator]  # a layer or a model
    elif trained:
        frozen: dict[int, Any] = {id(one): one.freeze() for one in trained}
        net = copy.deepcopy(served, frozen).requires_grad_(False)
    tensors = [*net.parameters(), *net.buffers()]
    if any(one.device.type != "cpu" for one in tensors):
        net = copy.deepcopy(net).to("cpu")
    return net.eval()


def layers_of(net: nn.Module) -> list[EmbeddingBase]:
    """Return the embedding layers of a module, without those inside of others."""
    if isinstance(net, EmbeddingBase):
        return [net]
    return [layer for child in net.children() for layer in layers_of(child)]


def schema_of(net: nn.Module, numeric: Tensor | None) -> tuple[Schema, int]:
    """Return the schema of a layer or model, and the number of its numeric columns.

    Args:
        net: the layer or model; a module of the user's own is called as a model is.
        numeric: of the examples, where they have some: they count the columns of such a module.
    """
    if isinstance(net, EmbeddingBase):
        return net.schema, 0
    owner: Any = net
    if kinds.of(net) is not None:
        return owner.embedding.schema, owner.numeric
    schema = layers_of(net)[0].schema
    takes = len(inspect.signature(net.forward).parameters) > 1
    count = len(schema.numeric) if numeric is None else numeric.shape[1]
    return schema, count if takes else 0


def memory_of(net: nn.Module) -> tuple[Memory, int]:
    """Return the serving bytes of the embedding layers by part, and the bytes of all else."""
    total = Memory()
    for layer in layers_of(net):
        total = total + Memory(module_bytes(layer))
    return total, sum(module_bytes(net).values()) - total.serving


def weights_digest(net: nn.Module) -> str:
    """BLAKE2b (128 bits) of a module's tensors: equal for equal weights, whatever the target."""
    state = hashlib.blake2b(digest_size=16)
    for name, one in sorted(net.state_dict().items()):
        state.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        state.update(one.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def versions(target: str) -> dict[str, str]:
    """Return the versions of what takes part."""
    import featemb

    found = {"featemb": featemb.__version__, "python": platform.python_version()}
    for name in _LIBRARIES[target]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def manifest_of(
    net: nn.Module,
    target: str,
    encoder: Encoder | None,
    raw: bool,
    tolerance: float,
    about: Mapping[str, Any],
    columns: tuple[Schema, int],
) -> dict[str, Any]:
    """Return what a file says of itself, JSON-able; examples are added by the exporter."""
    schema, numeric = columns
    memory, rest = memory_of(net)
    kind = kinds.of(net)
    vocabulary = sum(map(tensor_bytes, encoder.buffers())) if encoder is not None else 0
    return {
        "format": FORMAT,
        "target": target,
        "kind": "module" if kind is None else kind.name,
        "name": getattr(net, "name", type(net).__name__),
        "schema": json.loads(schema.without_counts().to_json()),
        "numeric": numeric,
        "raw": raw,
        "encoder": None if encoder is None else encoder.describe(),
        "inputs": input_names(schema, numeric, raw),
        "output": "vectors" if isinstance(net, EmbeddingBase) else "logits",
        "bytes": {"parts": dict(memory.parts), "net": rest, "vocabulary": vocabulary},
        "weights": weights_digest(net),
        "tolerance": tolerance,
        "versions": versions(target),
        "about": dict(about),
    }


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest ``|found - wanted| / max(1, |wanted|)``; infinite where one is NaN."""
    if found.shape != wanted.shape:
        return float("inf")
    off = (found.double() - wanted.double()).abs() / wanted.double().abs().clamp(min=1.0)
    return float(torch.nan_to_num(off, nan=torch.inf).max())
