"""Exported files: the same outputs as the frozen original, or no file; refused where damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featemb as fe
from featemb import package
from featemb.check.case import BAGS, SINGLE, bags, single_ids
from featemb.export import archive, check, pt2, safetensors, seal
from featemb.export.examples import generated

TARGETS = ("safetensors", "pt2", "onnx", "torchrec")
NUMBERED = fe.Schema(BAGS.features, ["age", "price"])


def layer(schema: fe.Schema = SINGLE, spec: str = "unified(lookups=2, rows=70)") -> Any:
    return fe.embedding(schema, spec, dim=8).freeze()


def model(schema: fe.Schema = NUMBERED, name: str = "deepfm") -> fe.models.CTRModel:
    inside = fe.embedding(schema, "unified(lookups=2, rows=90)+int4", dim=8)
    return fe.models.build(name, embedding=inside, hidden=(8,)).freeze()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model on multi-valued features and numbers, exported to every target without a compiler."""
    folder = tmp_path_factory.mktemp("files")
    return {to: fe.export(model(), folder / to, to=to).path for to in TARGETS}


@pytest.mark.parametrize("to", TARGETS)
def test_a_model_scores_alike(to: str, files: dict[str, Path]) -> None:
    found, net = fe.load(files[to]), model()
    for batch in (1, 5, 64):
        ids, numeric = generated(NUMBERED, 2, max(batch, 2))
        if batch == 1:
            ids = fe.Jagged(torch.tensor([5, 6, 7, 7, 0]), torch.tensor([1, 2, 0, 2]))
            numeric = numeric[:1]
        assert (found(ids, numeric) - net(ids, numeric)).abs().max() < 1e-5
    assert found.memory().serving == net.memory().serving
    assert found.schema == NUMBERED.without_counts()
    assert found.target == to
    assert found.inputs == ["values", "lengths", "numeric"]


@pytest.mark.parametrize("to", TARGETS)
def test_a_layer_answers_alike(to: str, tmp_path: Path) -> None:
    frozen = layer()
    found = fe.export(
        fe.embedding(SINGLE, "unified(lookups=2, rows=70)", dim=8), tmp_path / to, to=to
    )
    for batch in (1, 3, 64):
        ids = single_ids(max(batch, 2))[:batch]
        assert (found(ids) - frozen(ids)).abs().max() <= 1e-6
    with pytest.raises(fe.IdError, match="feature 'item': id 41 in sample 1"):
        found(torch.tensor([[0, 0, 0, 0], [0, 41, 0, 0]]))
    assert os.listdir(tmp_path) == [to]


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_a_graph_gives_nan_and_never_a_wrong_score(to: str, files: dict[str, Path]) -> None:
    found = fe.load(files[to])
    lengths = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    values = torch.tensor([0, 3, 96, 40, 7, 2])
    numeric = torch.zeros(3, 2)
    good = found.run({"values": values, "lengths": lengths, "numeric": numeric})
    assert not good.isnan().any()
    wrong = values.clone()
    wrong[1] = 97
    bad = found.run({"values": wrong, "lengths": lengths, "numeric": numeric})
    assert bad.isnan().tolist() == [False, True, False]
    assert torch.equal(bad[[0, 2]], good[[0, 2]])
    wrong[1] = -1
    assert found.run({"values": wrong, "lengths": lengths, "numeric": numeric}).isnan()[1]
    infinite = torch.tensor([[0.0, 0.0], [0.0, 0.0], [torch.nan, 0.0]])
    assert found.run({"values": values, "lengths": lengths, "numeric": infinite}).isnan()[2]
    short = {"values": values[:5], "lengths": lengths, "numeric": numeric}
    assert found.run(short).isnan().all()
    with pytest.raises(fe.SchemaError, match="the inputs are values, lengths, numeric"):
        found.run({"ids": values})


def test_a_package_is_as_large_as_its_weights(tmp_path: Path) -> None:
    schema = fe.Schema([fe.Feature("user", 60_000), fe.Feature("item", 9_000)], ["price"])
    for spec in ("full", "unified(lookups=2)+int8"):
        inside = fe.embedding(schema, spec, dim=16, **({} if spec == "full" else {"ratio": 10}))
        net = fe.models.build("deepfm", embedding=inside).freeze()
        for served, rest in ((net, net.net_bytes()), (net.embedding, 0)):
            path = fe.export(served, tmp_path / "file").path
            held = served.memory().serving + rest
            assert 0 < path.stat().st_size - held <= 1024 + held / 100


def test_an_export_that_differs_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = layer()
    (tmp_path / "there").write_bytes(b"before")
    real = safetensors.write

    def wrong(job: Any, path: Path) -> None:
        for one in job.net.buffers():
            if one.is_floating_point():
                one.mul_(1.01)
        real(job, path)

    monkeypatch.setattr(safetensors, "write", wrong)
    with pytest.raises(fe.ExportError, match=r"differ from the frozen .*nothing was written"):
        fe.export(frozen, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"before"
    with pytest.raises(fe.ExportError):
        fe.export(layer(), tmp_path / "new", examples=single_ids(9))
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("to", TARGETS)
def test_a_check_needs_the_file_alone(to: str, files: dict[str, Path]) -> None:
    found = check(files[to])
    assert found.rows >= 1
    assert found.worst <= found.tolerance == 1e-5
    assert found.size == files[to].stat().st_size


def test_a_check_sees_other_outputs(files: dict[str, Path], tmp_path: Path) -> None:
    header, tensors = package.read(files["safetensors"])
    name = next(one for one in tensors if one.endswith("weight"))
    package.write(tmp_path / "file", header, tensors | {name: tensors[name] + 0.5})
    with pytest.raises(fe.FormatError, match="differ from those at its export by"):
        check(tmp_path / "file")


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_no_flipped_byte_of_a_sealed_file_is_read(
    to: str, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = files[to].read_bytes()
    random = np.random.default_rng(0)
    places = {*random.integers(0, len(whole), 150), *range(len(whole) - 120, len(whole)), 0, 1}
    for place in sorted(places):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(0, 8)
        (tmp_path / "file").write_bytes(changed)
        with pytest.raises(fe.FormatError):
            fe.load(tmp_path / "file")
    for keep in (0, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "file").write_bytes(whole[:keep])
        with pytest.raises(fe.FormatError):
            fe.load(tmp_path / "file")
    (tmp_path / "file").write_bytes(whole + b"\0")
    with pytest.raises(fe.FormatError):
        fe.load(tmp_path / "file")


@pytest.mark.parametrize("to", ["safetensors", "torchrec"])
def test_flipped_bytes_of_a_package_never_give_other_scores(
    to: str, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = files[to].read_bytes()
    ids, numeric = generated(NUMBERED, 2)
    wanted = fe.load(files[to])(ids, numeric)
    random = np.random.default_rng(1)
    refused = 0
    for place in random.integers(0, len(whole), 120):
        changed = bytearray(whole)
        changed[place] ^= 1 << random.integers(0, 8)
        (tmp_path / "file").write_bytes(changed)
        try:
            found = fe.load(tmp_path / "file")
        except fe.FormatError:
            refused += 1
            continue
        assert torch.equal(found(ids, numeric), wanted)
    assert refused > 110
    for keep in (0, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "file").write_bytes(whole[:keep])
        with pytest.raises(fe.FormatError):
            fe.load(tmp_path / "file")


@pytest.mark.parametrize(("to", "between"), [("pt2", 0), ("onnx", 18)])
def test_a_seal_is_checked_without_featemb(to: str, between: int, files: dict[str, Path]) -> None:
    """As docs/export.md says."""
    whole = files[to].read_bytes()
    body, label, digits = whole[: -52 - between], whole[-52:-32], whole[-32:]
    assert label == b"featemb-blake2b-128:"
    assert hashlib.blake2b(body, digest_size=16).hexdigest().encode() == digits


def test_a_newer_version_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    header, tensors = package.read(files["safetensors"])
    package.write(tmp_path / "file", {**header, "format": 9}, tensors)
    with pytest.raises(fe.FormatError, match="has format 9, this version reads 2 to 3"):
        fe.load(tmp_path / "file")
    newer = {**header, "artefact": {**header["artefact"], "format": 9}}
    package.write(tmp_path / "file", newer, tensors)
    with pytest.raises(fe.FormatError, match="has export format 9"):
        fe.load(tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file", "w") as made:
        made.writestr("model/data", b"")
    archive.add_manifest(tmp_path / "file", {"format": 9, "target": "aoti"})
    with pytest.raises(fe.FormatError, match="has export format 9"):
        fe.load(tmp_path / "file")


def test_files_of_others_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file.pt2", "w") as made:
        made.writestr("model/data", b"")
    with pytest.raises(fe.FormatError, match="no seal of featemb"):
        fe.load(tmp_path / "file.pt2")
    (tmp_path / "file.onnx").write_bytes(b"\x08\x0a" * 200)
    with pytest.raises(fe.FormatError, match="no seal of featemb"):
        fe.load(tmp_path / "file.onnx")
    with pytest.raises(fe.FormatError, match="is not a file"):
        fe.load(tmp_path / "nowhere")
    layer().save(tmp_path / "plain")
    with pytest.raises(fe.FormatError, match=r"not written by featemb\.export"):
        check(tmp_path / "plain")


def test_nothing_pickled_is_read(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "file.pt2"
    with zipfile.ZipFile(files["pt2"]) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            assert not (info.filename.endswith(".pt") and data), "ours hold none"
            new.writestr(info, b"x" if "sample_inputs" in info.filename else data)
    seal.seal_zip(path)
    with pytest.raises(fe.FormatError, match=r"sample_inputs.*pickled"):
        pt2.read(path)


def test_another_schema_is_refused(files: dict[str, Path]) -> None:
    for path in files.values():
        fe.load(path, schema=NUMBERED)
        with pytest.raises(fe.FormatError, match="another schema"):
            fe.load(path, schema=BAGS)


def test_a_header_that_does_not_fit_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    header, tensors = package.read(files["safetensors"])
    for change in ({"layers": {}}, {"kind": "nothing"}, {"model": "deepfn"}, {"built_widths": [1]}):
        package.write(tmp_path / "file", {**header, **change}, tensors)
        with pytest.raises(fe.FormatError):
            fe.load(tmp_path / "file")


class Own(torch.nn.Module):
    """A module of a user's own around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = fe.embedding(SINGLE, "hash(rows=60)+int8", dim=8)
        self.out = torch.nn.Linear(34, 1)

    def forward(self, ids: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
        score: torch.Tensor = self.out(torch.cat([self.layer(ids), numeric], 1))[:, 0]
        return score


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    net = Own()
    ids, numeric = single_ids(), torch.randn(64, 2)
    found = fe.export(net, tmp_path / "file", to="pt2", examples=(ids, numeric))
    assert isinstance(net.layer, fe.FeatureEmbedding), "the original is left alone"
    assert found.manifest["bytes"]["net"] == 35 * 4
    assert found.memory().serving == net.layer.memory().serving
    net.layer = net.layer.freeze()
    assert (found(ids, numeric) - net(ids, numeric)).abs().max() < 1e-6
    with pytest.raises(fe.ExportError, match=r"not a Own: use pt2"):
        fe.export(net, tmp_path / "other", examples=(ids, numeric))


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    with pytest.raises(fe.ConfigError, match="unknown target 'onx'; did you mean 'onnx'"):
        fe.export(layer(), tmp_path / "file", to="onx")
    with pytest.raises(fe.ConfigError, match="a Linear is no layer"):
        fe.export(torch.nn.Linear(2, 2), tmp_path / "file")
    with pytest.raises(fe.ConfigError, match="raw=True needs an encoder"):
        fe.export(layer(), tmp_path / "file", raw=True)
    with pytest.raises(fe.ConfigError, match="onnx has no options, got march"):
        fe.export(layer(), tmp_path / "file", to="onnx", march="x86-64-v3")
    with pytest.raises(fe.DataError, match="lack their 2 numeric columns"):
        fe.export(model(), tmp_path / "file", examples=bags())
    with pytest.raises(fe.ExportError, match="no table of fp32, fp16"):
        fe.export(layer(SINGLE, "full+binary"), tmp_path / "file", to="torchrec")
    with pytest.raises(fe.FormatError, match="no folder"):
        fe.export(layer(), tmp_path / "none" / "file")
    assert not os.listdir(tmp_path)


def test_a_manifest_says_what_it_is(files: dict[str, Path]) -> None:
    net = model()
    for to, path in files.items():
        told = fe.load(path).manifest
        assert json.loads(json.dumps(told)) == told
        assert (told["format"], told["target"], told["kind"], told["name"]) == (
            *(1, to, "model"),
            "deepfm",
        )
        assert told["bytes"]["net"] == net.net_bytes()
        assert {"featemb", "python", "torch"} <= told["versions"].keys()
    assert len({fe.load(path).manifest["weights"] for path in files.values()}) == 1


def test_a_collection_takes_keyed_jagged_tensors() -> None:
    torchrec = pytest.importorskip("torchrec")
    from featemb.export.torchrec import collection

    for codec in ("fp32", "fp16", "int4", "int2"):
        frozen = layer(SINGLE, f"full+{codec}")
        ids = single_ids()
        keyed = torchrec.KeyedJaggedTensor(
            keys=list(SINGLE.names),
            values=ids.T.reshape(-1),
            lengths=torch.ones(ids.numel(), dtype=torch.int64),
        )
        found = collection(frozen)(keyed)
        assert found.keys() == list(SINGLE.names)
        assert torch.equal(found.values(), frozen(ids))
    with pytest.raises(fe.ExportError, match="no rows of their own"):
        collection(layer())
    with pytest.raises(fe.ExportError, match="no max pooling"):
        collection(layer(BAGS, "full"))


@pytest.mark.slow
def test_compiled_hashes_are_the_same(tmp_path: Path) -> None:
    """A compiler that takes 64-bit products for never overflowing gives other rows."""
    schema = fe.Schema(SINGLE.features, ["age"])
    inside = fe.embedding(schema, "unified(lookups=2, rows=90)+int8", dim=8)
    net = fe.models.build("fm", embedding=inside).freeze()
    found = fe.export(net, tmp_path / "file", to="aoti")
    assert check(found.path).worst < 1e-6
    numeric = torch.randn(64, 1)
    assert (found(single_ids(), numeric) - net(single_ids(), numeric)).abs().max() < 1e-5
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text("utf-8")
    told: dict[str, Any] = {}  # how the page says that a server without featemb reads it
    exec(
        next(
            one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "def compiled" in one
        ),
        told,
    )
    (tmp_path / "file.pt2").symlink_to(found.path)
    model, _ = told["compiled"](str(tmp_path / "file.pt2"))
    assert torch.equal(model(single_ids(), numeric), found(single_ids(), numeric))
    whole = found.path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 20):
        changed = bytearray(whole)
        changed[place] ^= 16
        (tmp_path / "broken").write_bytes(changed)
        with pytest.raises(fe.FormatError):
            fe.load(tmp_path / "broken")
