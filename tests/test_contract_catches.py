"""The contract suite against planted faults: each must be caught, by the check meant for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import config as registry
from featemb.frozen import FrozenEmbedding
from featemb.layer import BuildContext, FeatureEmbedding, MethodConfig, RowEmbedding
from featemb.parts import Concat, OffsetAddress, Part


class _Toy(MethodConfig):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a method with a planted fault"
    paper: ClassVar[str] = "-"


@pytest.fixture(autouse=True)
def _forget_toys() -> Iterator[None]:
    fe.methods()  # discovery comes before the copy
    known = dict(registry._REGISTRY)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(known)


def _plain(context: BuildContext, config: MethodConfig) -> RowEmbedding:
    offsets = [0]
    for cardinality in context.schema.cardinalities:
        offsets.append(offsets[-1] + cardinality)
    table = context.table(offsets[-1], context.dim, 0.05)
    address = OffsetAddress(offsets=tuple(offsets[:-1]))
    return RowEmbedding(context, config, address=address, rows=table, combine=Concat())


def _run(check: str) -> None:
    found = next(one for one in fe.check.checks() if one.__name__ == check)
    found(fe.check.Case("toy"))


def _register(build: object) -> None:
    toy = dataclass(frozen=True, kw_only=True)(
        type("Toy", (_Toy,), {"build": build, "__doc__": "A toy."})
    )
    registry.register(toy)


def test_a_sound_toy_passes() -> None:
    _register(lambda self, context: _plain(context, self))
    fe.check.check_method("toy")


def test_pointers_outside_the_state_dict() -> None:
    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        layer = _plain(context, self)
        total = sum(context.schema.cardinalities)
        generator = torch.Generator().manual_seed(context.seed)
        pointers = torch.randperm(total, generator=generator)  # not a buffer
        address = layer.source.address
        layer.source.address = _Pointed(address, pointers)
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match="state dict"):
        _run("check_state_dict_decides")


class _Pointed(nn.Module):
    def __init__(self, inner: nn.Module, pointers: Tensor) -> None:
        super().__init__()
        self.inner, self.pointers = inner, pointers

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        return self.pointers[self.inner(ids, feature)]


def test_unseeded_initial_values() -> None:
    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        layer = _plain(context, self)
        nn.init.normal_(layer.source.rows.weight)  # the global generator
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match=r"generator|differ"):
        _run("check_one_seed_decides")


def test_threshold_cut_off_from_the_data_loss() -> None:
    class Cut(RowEmbedding):
        def penalty(self) -> Tensor:
            return self.threshold.exp().sum()

    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        plain = _plain(context, self)
        source = plain.source
        layer = Cut(context, self, address=source.address, rows=source.rows, combine=source.combine)
        layer.threshold = nn.Parameter(torch.zeros(1))
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match="threshold"):
        _run("check_data_reaches_every_parameter")


def test_frozen_layer_keeps_more_than_it_claims() -> None:
    class Keeper(RowEmbedding):
        def freeze(self, codec: object = None) -> FrozenEmbedding:
            frozen = super().freeze(codec)
            if not self.source.rows.weight.is_meta:
                frozen.register_buffer("spare", self.source.rows.weight.detach().clone())
            return frozen

    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        source = _plain(context, self).source
        return Keeper(
            context, self, address=source.address, rows=source.rows, combine=source.combine
        )

    _register(build)
    with pytest.raises(fe.check.CheckError, match="serving"):
        _run("check_serving_bytes_are_frozen_bytes")


def test_frozen_layer_forgets_what_training_decided() -> None:
    class Masked(RowEmbedding):
        def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
            return super().lookup(ids, feature) * self.mask

    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        source = _plain(context, self).source
        layer = Masked(
            context, self, address=source.address, rows=source.rows, combine=source.combine
        )
        mask = torch.ones(context.dim)
        mask[-1] = 0
        layer.register_buffer("mask", mask)  # the inherited _freeze knows nothing of it
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match="answers differently"):
        _run("check_frozen_answers")


def test_ids_that_pass_unchecked() -> None:
    class Loose(RowEmbedding):
        def forward(self, ids: Tensor) -> Tensor:
            return self.forward_single(ids.clamp(0, 1)).flatten(1)

    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        source = _plain(context, self).source
        return Loose(
            context, self, address=source.address, rows=source.rows, combine=source.combine
        )

    _register(build)
    with pytest.raises(fe.check.CheckError, match="accepted"):
        _run("check_bad_ids_are_named")


def test_a_part_name_is_used_once() -> None:
    with pytest.raises(TypeError, match="Concat"):
        type("Concat", (Part,), {})
