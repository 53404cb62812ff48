"""Checks of what a layer stores: state dict, bytes, frozen form, files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from featemb import optim
from featemb.check.case import BAGS, Case, LinearReader, bags, expect, single_ids, task
from featemb.codecs.base import codec_by_name
from featemb.codecs.floats import FloatRows
from featemb.config import names
from featemb.frozen import load
from featemb.memory import tensor_bytes
from featemb.parts import Concat, Lookup


def check_state_dict_decides(case: Case) -> None:
    """A trained state dict loaded into a layer of another seed gives the same answers."""
    layer, other = case.trained(seed=1), case.layer(seed=2).eval()
    other.load_state_dict(layer.state_dict())
    ids = single_ids()
    expect(torch.equal(layer(ids), other(ids)), "something that decides is not in the state dict")


def check_bytes_are_real(case: Case) -> None:
    """`memory` counts the tensors that exist, to the byte, in training and frozen."""
    layer = case.layer()
    tensors = [*layer.parameters(), *layer.buffers()]
    expect(layer.memory().training == sum(map(tensor_bytes, tensors)), "training bytes are wrong")
    model = LinearReader(layer)
    optimizers = optim.build(model, lr=0.01)
    batch = task(1)[0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.ids), batch.label)
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    real = [*tensors, *(p.grad for p in layer.parameters() if p.grad is not None)]
    for parameter in layer.parameters():
        states = (one.state.get(parameter, {}) for one in optimizers)
        real += [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]
    counted = layer.memory(optimizers).training
    expect(counted == sum(map(tensor_bytes, real)), "bytes with an optimizer are wrong")


def check_serving_bytes_are_frozen_bytes(case: Case) -> None:
    """`memory().serving` is what `freeze` holds after training, and each part is named."""
    layer = case.trained()
    frozen = layer.freeze()
    stored = sum(map(tensor_bytes, [*frozen.parameters(), *frozen.buffers()]))
    memory = layer.memory()
    expect(memory.serving == stored, f"serving {memory.serving} is not the {stored} stored")
    expect(frozen.memory().parts == memory.parts, "the frozen layer counts other parts")
    generic = {"parameters", "buffers"} & set(memory.parts)
    expect(not generic, f"parts without a name: {memory.parts}")


def check_frozen_answers(case: Case) -> None:
    """After all stages the frozen layer answers as the layer in eval mode, bit for bit in fp32."""
    layer = case.trained()
    ids = single_ids()
    frozen = layer.freeze("fp32")
    expect(not list(frozen.parameters()), "the frozen layer has parameters")
    expect(torch.equal(frozen(ids), layer(ids)), "the frozen layer answers differently")
    many = case.finished(BAGS)
    expect(torch.equal(many.freeze("fp32")(bags()), many(bags())), "frozen bags differ")


def check_frozen_is_separate(case: Case) -> None:
    """The frozen layer shares no tensor with the trained one: later training leaves it alone."""
    layer = case.layer()
    state = layer.state_dict()  # held: a freed tensor's memory may be another's
    trained = {_storage(tensor) for tensor in state.values() if tensor.numel()}
    for codec in names("codec"):
        frozen = layer.freeze(codec)
        shared = [
            name for name, tensor in frozen.state_dict().items() if _storage(tensor) in trained
        ]
        expect(not shared, f"{shared} of the frozen layer are the trained layer's tensors")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def check_frozen_codecs(case: Case) -> None:
    """Frozen rows of every codec are smaller, and within the codec's stated error.

    Where a vector is more than rows side by side, its own arithmetic carries the error on: there
    fp16, bf16 and int8 must stay within a tenth of the largest number.
    """
    layer = case.trained()
    if layer.spec.methods[-1].axis == "format":
        return
    ids = single_ids()
    exact = layer.freeze("fp32")
    tables = [one.weight for one in exact.modules() if isinstance(one, FloatRows)]
    plain = isinstance(exact.source, Lookup) and isinstance(exact.source.combine, Concat)
    plain = plain and isinstance(exact.source.rows, FloatRows)
    for name in ("fp16", "bf16", "fp8", "int8", "int4", "int2") if tables else ():
        frozen = layer.freeze(name)
        error = float((frozen(ids) - exact(ids)).abs().max())
        close = name in ("fp16", "bf16", "int8")
        bound = float(exact(ids).abs().max()) / 10 if close else float("inf")
        if plain:
            bound = float(codec_by_name(name).error_bound(tables[0]).max())
        expect(error <= bound, f"{name}: error {error:.3g} above {bound:.3g}")
        expect(frozen.memory().serving < exact.memory().serving, f"{name} is not smaller")


def check_file_round_trip(case: Case) -> None:
    """A saved frozen layer loads with the same answers; its file is as large as claimed."""
    frozen = case.trained().freeze()
    ids = single_ids()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        frozen.save(path)
        again = load(path)
        size = path.stat().st_size
        expect(list(Path(folder).iterdir()) == [path], "saving left other files behind")
    expect(torch.equal(again(ids), frozen(ids)), "the loaded layer answers differently")
    stored = frozen.memory().serving
    header = 1024 + 64 * len(frozen.state_dict())
    expect(abs(size - stored) <= header + stored // 100, f"{size} bytes on disk, {stored} counted")
