"""The contract suite against planted faults: each must be caught, by the check meant for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import featemb as fe
from featemb import config as registry
from featemb.codecs.base import Codec
from featemb.codecs.floats import FloatRows, Fp32
from featemb.frozen import FrozenEmbedding
from featemb.hashing import bucket
from featemb.layer import BuildContext, FeatureEmbedding, MethodConfig, RowEmbedding
from featemb.parts import Concat, HashAddress, OffsetAddress, Part


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


def _made_of(kind: type[RowEmbedding], **options: Any) -> Callable[..., FeatureEmbedding]:
    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        source = _plain(context, self).source
        return kind(
            context,
            self,
            address=source.address,
            rows=source.rows,
            combine=source.combine,
            **options,
        )

    return build


def _run(check: str) -> None:
    next(one for one in fe.check.checks() if one.__name__ == check)(fe.check.Case("toy"))


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

    _register(_made_of(Keeper))
    with pytest.raises(fe.check.CheckError, match="serving"):
        _run("check_serving_bytes_are_frozen_bytes")


def test_frozen_layer_forgets_what_training_decided() -> None:
    class Masked(RowEmbedding):
        def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
            return super().lookup(ids, feature) * self.mask

        forward_single = FeatureEmbedding.forward_single

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

    _register(_made_of(Loose))
    with pytest.raises(fe.check.CheckError, match="accepted"):
        _run("check_bad_ids_are_named")


def test_a_part_name_is_used_once() -> None:
    with pytest.raises(TypeError, match="Concat"):
        type("Concat", (Part,), {})


def test_unseeded_hash() -> None:
    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        layer = _plain(context, self)
        salt = int.from_bytes(os.urandom(7), "little")  # of the process, not of the seed
        sizes = context.schema.cardinalities
        layer.source.address = HashAddress(
            offsets=layer.source.address.offsets,
            sizes=sizes,
            whole=(False,) * len(sizes),
            lookups=1,
            spread=False,
            seed=torch.tensor(salt, device=context.device),
        )
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match="two layers of one seed differ"):
        _run("check_one_seed_decides")


def test_hash_whose_seed_is_not_in_the_state_dict() -> None:
    class Unsaved(nn.Module):
        def __init__(self, inner: nn.Module, seed: int, rows: int) -> None:
            super().__init__()
            self.inner, self.seed, self.rows = inner, seed, rows  # a number, not a buffer

        def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
            return bucket(self.inner(ids, feature), torch.tensor(self.seed), self.rows)

    def build(self: MethodConfig, context: BuildContext) -> FeatureEmbedding:
        layer = _plain(context, self)
        rows = sum(context.schema.cardinalities)
        layer.source.address = Unsaved(layer.source.address, context.seed, rows)
        return layer

    _register(build)
    with pytest.raises(fe.check.CheckError, match="state dict"):
        _run("check_state_dict_decides")


def test_frozen_widths_forgotten() -> None:
    class Forgetful(RowEmbedding):
        def _freeze(self, codec: Codec) -> FrozenEmbedding:
            frozen = super()._freeze(codec)
            equal = (self.dim,) * self.schema.num_features
            return FrozenEmbedding(self.schema, self.dim, equal, frozen.source)

    _register(_made_of(Forgetful, widths=(7, 8, 8, 8)))
    with pytest.raises(fe.check.CheckError, match="answers differently"):
        _run("check_frozen_answers")


def test_frozen_layer_keeps_float_rows_beside_its_codes() -> None:
    class Both(RowEmbedding):
        def _freeze(self, codec: Codec) -> FrozenEmbedding:
            frozen = super()._freeze(codec)
            frozen.source.rows.register_buffer("weight", self.source.rows.weight.detach().clone())
            return frozen

    _register(_made_of(Both))
    with pytest.raises(fe.check.CheckError, match="is not smaller"):
        _run("check_frozen_codecs")


def test_frozen_layer_that_training_goes_on_changing() -> None:
    class Live(RowEmbedding):
        def _freeze(self, codec: Codec) -> FrozenEmbedding:
            frozen = super()._freeze(codec)
            if isinstance(codec, Fp32):
                frozen.source.rows = FloatRows(weight=self.source.rows.weight.detach())
            return frozen

    _register(_made_of(Live))
    with pytest.raises(fe.check.CheckError, match="are the trained layer's tensors"):
        _run("check_frozen_is_separate")


def test_a_gradient_that_is_wrong() -> None:
    class Doubled(RowEmbedding):
        def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
            vectors = super().lookup(ids, feature)
            return vectors + (vectors - vectors.detach())

        forward_single = FeatureEmbedding.forward_single

    _register(_made_of(Doubled))
    with pytest.raises(fe.check.CheckError, match=r"gradient .* is wrong"):
        _run("check_gradients")


def test_bytes_that_have_no_name() -> None:
    class Unnamed(RowEmbedding):
        def _freeze(self, codec: Codec) -> FrozenEmbedding:
            frozen = super()._freeze(codec)
            frozen.register_buffer("spare", torch.zeros(3, device=self.source.rows.weight.device))
            return frozen

    _register(_made_of(Unnamed))
    with pytest.raises(fe.check.CheckError, match="parts without a name"):
        _run("check_serving_bytes_are_frozen_bytes")


@pytest.mark.parametrize(
    "guard",
    ["test_every_method_has_a_row_and_every_row_a_method", "test_every_method_is_one_file"],
)
def test_a_method_without_a_row_or_a_file(guard: str) -> None:
    spec = importlib.util.spec_from_file_location(
        "contract_again", Path(__file__).with_name("test_contract.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (check,) = (value for name, value in vars(module).items() if name.startswith(guard))
    check()
    _register(lambda self, context: _plain(context, self))
    with pytest.raises(AssertionError):
        check()


def test_a_taken_name_is_refused_whatever_the_class_is_called() -> None:
    full = type("Full", (_Toy,), {"name": "full", "__module__": "elsewhere"})
    with pytest.raises(fe.ConfigError, match="registered twice"):
        registry.register(dataclass(frozen=True, kw_only=True)(full))
