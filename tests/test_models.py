"""Every registered model over equal and unequal widths: learning, export, freezing, bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import EMBEDDINGS, VARIANTS, batch, layer_of, small_net
from torch.nn.functional import binary_cross_entropy_with_logits

import featemb as fe
from featemb.models import (
    build,
    config_fields,
    find,
    names,
)

every_model = pytest.mark.parametrize("name", names())
every_embedding = pytest.mark.parametrize("kind", EMBEDDINGS)
every_variant = pytest.mark.parametrize(("name", "config"), VARIANTS)


def test_the_core_models_are_registered() -> None:
    assert {"lr", "fm", "deepfm", "widedeep", "dlrm", "dcnv2"} <= set(names())


@every_model
def test_a_model_describes_itself(name: str) -> None:
    model = find(name)
    assert model.name == name
    assert model.summary
    assert model.paper
    assert model.embedding_dim == (1 if name == "lr" else None)


@every_variant
@every_embedding
@pytest.mark.parametrize("numeric", [0, 2])
def test_shape_and_gradients(name: str, config: dict[str, Any], kind: str, numeric: int) -> None:
    net = small_net(name, kind, numeric, **config).train()
    ids, values = batch(64)
    logits = net(ids, values) if numeric else net(ids)
    assert logits.shape == (64,)
    assert logits.dtype == torch.float32
    binary_cross_entropy_with_logits(logits, (ids[:, 0] % 2).float()).backward()  # type: ignore[no-untyped-call]
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@every_model
@every_embedding
def test_overfits_64_rows(name: str, kind: str) -> None:
    fields = config_fields(name)
    wanted: dict[str, Any] = {"hidden": [16], "dropout": 0.0, "project": True}
    config = {k: v for k, v in wanted.items() if k in fields}
    net = build(name, embedding=layer_of(kind, dim=8), numeric=2, **config)
    generator = torch.Generator().manual_seed(3)
    ids, values = batch(64)
    ids[:, 0] = torch.arange(64)
    label = torch.randint(2, (64,), generator=generator).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(net(ids, values), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.2


@every_model
@every_embedding
def test_samples_do_not_depend_on_each_other_in_eval(name: str, kind: str) -> None:
    net = small_net(name, kind).eval()
    ids, values = batch()
    expected = net(ids, values)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(net(ids[order], values[order]), expected[order])
    torch.testing.assert_close(net(ids[2:3], values[2:3]), expected[2:3])


# ---- export, compile, freezing ----


@every_variant
@every_embedding
def test_export_gives_the_same_output(name: str, config: dict[str, Any], kind: str) -> None:
    net = small_net(name, kind, **config).eval()
    ids, values = batch()
    size = torch.export.Dim("size", min=2)
    program = torch.export.export(
        net, (ids, values), dynamic_shapes=({0: size}, {0: size}), strict=False
    )
    more, numbers = batch(11)
    torch.testing.assert_close(program.module()(more, numbers), net(more, numbers))


@every_model
@every_embedding
def test_compile_traces_one_graph(name: str, kind: str) -> None:
    net = small_net(name, kind)
    ids, values = batch()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, values), net(ids, values))
    torch._dynamo.reset()


@every_variant
@every_embedding
def test_freeze_gives_the_eval_output(name: str, config: dict[str, Any], kind: str) -> None:
    net = small_net(name, kind, **config)
    ids, values = batch()
    frozen = net.freeze()
    assert not frozen.training
    assert net.training
    assert all(isinstance(layer, fe.FrozenEmbedding) for layer in frozen.embeddings())
    assert torch.equal(frozen(ids, values), net.eval()(ids, values))
    assert frozen.memory().serving == net.memory().serving
    assert frozen.net_bytes() == net.net_bytes()
    assert frozen.penalty().item() == 0
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in frozen.parameters()}
    assert not shared
    with pytest.raises(fe.ConfigError, match="frozen already"):
        frozen.freeze()


def test_freeze_takes_a_codec() -> None:
    net = small_net("deepfm")
    ids, values = batch()
    half = net.freeze("fp16")
    assert half.memory().serving * 2 == net.memory().serving
    torch.testing.assert_close(half(ids, values), net.eval()(ids, values), atol=0.01, rtol=0.01)


# ---- bytes and penalties ----


@every_model
@every_embedding
def test_memory_and_penalty_are_sums_over_all_layers(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net(name, kind)
    layers = [one for one in net.embeddings() if isinstance(one, fe.FeatureEmbedding)]
    assert layers[0] is net.embedding
    assert len(layers) == (2 if name in ("fm", "deepfm", "widedeep") else 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(*batch()).sum().backward()
    optimizer.step()
    memory = net.memory(optimizer)
    assert memory.serving == sum(layer.memory(optimizer).serving for layer in layers)
    assert memory.training == sum(layer.memory(optimizer).training for layer in layers)
    assert memory.training > net.memory().training
    for weight, layer in enumerate(layers, start=1):
        monkeypatch.setattr(layer, "penalty", lambda w=weight: torch.tensor(float(w)))
    assert net.penalty().item() == sum(range(1, len(layers) + 1))


@every_variant
@every_embedding
def test_net_bytes_are_what_the_layers_leave(name: str, config: dict[str, Any], kind: str) -> None:
    net = small_net(name, kind, **config)
    whole = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    inside = sum(
        t.numel() * t.element_size()
        for layer in net.embeddings()
        for t in (*layer.parameters(), *layer.buffers())
    )
    assert net.net_bytes() == whole - inside
    dense = {id(p) for p in net.dense_parameters()}
    tables = {id(p) for layer in net.embeddings() for p in layer.parameters()}
    assert not dense & tables
    assert dense | tables == {id(p) for p in net.parameters()}


def test_projection_bytes_count_as_net_bytes() -> None:
    equal = build("fm", embedding=layer_of("equal"), numeric=0, project=True)
    unequal = build("fm", embedding=layer_of("unequal"), numeric=0, project=True)
    # widths are 4, 6 and 2: two maps to width 6
    assert unequal.net_bytes() - equal.net_bytes() == 4 * (4 * 6 + 2 * 6)


# ---- seeds ----


@every_model
def test_weights_come_from_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = build(name, embedding=layer_of("equal"), numeric=2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = build(name, embedding=layer_of("equal"), numeric=2, seed=5)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    if name != "lr":
        other = build(name, embedding=layer_of("equal"), numeric=2, seed=6)
        pairs = zip(first.dense_parameters(), other.dense_parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


@every_model
def test_a_state_dict_loads_into_another_seed(name: str) -> None:
    net = small_net(name)
    other = small_net(name, seed=9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(*batch()), net.eval()(*batch()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_model
@every_embedding
def test_cuda_gives_the_cpu_output(name: str, kind: str) -> None:
    net = small_net(name, kind).eval()
    ids, values = batch()
    expected = net(ids, values)
    moved = net.to("cuda")(ids.cuda(), values.cuda())
    torch.testing.assert_close(moved.cpu(), expected)
