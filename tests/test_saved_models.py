"""Served models in files: the same logits, refused where anything is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import featemb as fe
from featemb import models, package

SCHEMA = fe.Schema(
    [fe.Feature("user", 300), fe.Feature("item", 90), fe.Feature("tags", 12, multi=True)],
    ["price", "age"],
)
SPECS = ("full", "unified(lookups=2)+int8", "optembed", "tt", "lowdim")


def net(model: str = "deepfm", spec: str = "full", **settings: object) -> models.CTRModel:
    size = {} if spec == "full" else {"ratio": 4}
    layer = fe.embedding(SCHEMA, spec, dim=8, **size)  # type: ignore[arg-type]
    small = {} if model in ("fm", "lr", "dlrm") else {"hidden": (8,)}
    built = models.build(model, embedding=layer, seed=3, **{**small, **settings})
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    return built


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def batch() -> tuple[fe.Jagged, torch.Tensor]:
    values = torch.tensor([0, 299, 17, 4, 89, 0, 11, 3, 3])
    return fe.Jagged(values, torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 2])), torch.randn(
        3, 2, generator=generator()
    )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", models.names())
def test_a_model_reads_back(model: str, spec: str, tmp_path: Path) -> None:
    served = net(model, spec).freeze()
    models.save(served, tmp_path / "model")
    again = models.load(tmp_path / "model")
    assert type(again) is type(served)
    assert again.config == served.config
    assert not again.training
    assert torch.equal(again(*batch()), served(*batch()))
    assert again.memory() == served.memory()
    assert again.net_bytes() == served.net_bytes()
    assert again.embedding.widths == served.embedding.widths


def test_settings_travel(tmp_path: Path) -> None:
    served = net("dcnv2", "qr", hidden=(6, 5), batch_norm=True, cross_layers=2).freeze("int4")
    models.save(served, tmp_path / "model")
    assert torch.equal(models.load(tmp_path / "model")(*batch()), served(*batch()))


def test_another_process_gives_the_same_logits(tmp_path: Path) -> None:
    served = net("deepfm", "hash").freeze()
    models.save(served, tmp_path / "model")
    script = (
        "import torch, featemb as fe\n"
        f"net = fe.models.load({str(tmp_path / 'model')!r})\n"
        "print(net(fe.Jagged(torch.tensor([5, 6, 7]), torch.ones(3, dtype=torch.int64)),"
        " torch.zeros(1, 2)).item())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    one = fe.Jagged(torch.tensor([5, 6, 7]), torch.ones(3, dtype=torch.int64))
    assert float(told.stdout) == served(one, torch.zeros(1, 2)).item(), told.stderr


def test_a_model_in_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fe.ConfigError, match="freeze"):
        models.save(net(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    served = net().freeze()
    models.save(served, tmp_path / "model")
    served.embedding.save(tmp_path / "layer")  # type: ignore[operator]
    assert isinstance(fe.load(tmp_path / "model"), models.CTRModel)
    assert isinstance(fe.load(tmp_path / "layer"), fe.FrozenEmbedding)
    with pytest.raises(fe.FormatError, match="holds a 'embedding'"):
        models.load(tmp_path / "layer")


def test_flipped_bytes_never_give_other_logits(tmp_path: Path) -> None:
    served = net("fm", "unified(lookups=2)+int8").freeze()
    models.save(served, tmp_path / "model")
    raw, answer = (tmp_path / "model").read_bytes(), served(*batch())
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(0, len(raw), 150):
        changed = bytearray(raw)
        changed[position] ^= 1 << random.integers(0, 8)
        (tmp_path / "broken").write_bytes(bytes(changed))
        try:
            again = models.load(tmp_path / "broken")
        except fe.FormatError:
            refused += 1
            continue
        assert torch.equal(again(*batch()), answer), "only what carries nothing may change"
    assert refused > 140
    for keep in (0.0, 0.3, 0.9, 0.999):
        (tmp_path / "broken").write_bytes(raw[: int(keep * len(raw))])
        with pytest.raises(fe.FormatError):
            models.load(tmp_path / "broken")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "deepfn"}, "unknown model 'deepfn'; did you mean 'deepfm'"),
        ({"config": {"hiden": [8]}}, "not known"),
        ({"config": {"hidden": [9]}}, r"tensor 'mlp.* is torch.float32 \[8"),
        ({"config": {"hidden": [8, 8]}}, "is not that of deepfm"),
        ({"numeric": 3}, r"has torch.float32 \["),
        ({"layers": {}}, "not known: 'embedding'"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    models.save(net().freeze(), tmp_path / "model")
    header, tensors = package.read(tmp_path / "model", "model")
    package.write(tmp_path / "model", header | change, tensors)
    with pytest.raises(fe.FormatError, match=message):
        models.load(tmp_path / "model")
