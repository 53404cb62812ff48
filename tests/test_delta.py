"""Deltas: exact, small, atomic; refused where they do not fit; applied while others read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featemb as fe
from featemb import models, package
from featemb.changes import changed, patched
from featemb.cli import main

SCHEMA = fe.Schema([fe.Feature("user", 900), fe.Feature("item", 300)], ["price"])
LAYERS = [f"full+{codec}" for codec in fe.codecs()] + [
    "hash+int8(scales=row)",
    "optembed",
    "tt",
    "qr",
    "cafe",
    "mgqe",
    "dhe",
    "mpe",
]


def layer(spec: str, rows: int = 0, seed: int = 0) -> fe.FrozenEmbedding:
    """A frozen layer; some rows of its trained form are moved by ``seed``."""
    method = spec.split("+")[0]
    size = {} if method == "full" else {"ratio": 4}
    trained = fe.embedding(SCHEMA, spec, dim=8, seed=0, **size)  # type: ignore[arg-type]
    if rows:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            table = max(trained.parameters(), key=lambda one: one.numel())
            places = torch.randperm(len(table), generator=random)[:rows]
            table[places] += 0.03 * torch.randn(table[places].shape, generator=random)
    return trained.freeze()


def model(rows: int = 0, seed: int = 0, name: str = "deepfm", **how: object) -> models.CTRModel:
    """A served model; some rows and the network are moved by ``seed``."""
    schema = how.pop("schema", SCHEMA)
    numeric = len(schema.numeric)  # type: ignore[attr-defined]
    table = fe.embedding(schema, "full", dim=8)  # type: ignore[arg-type]
    net = models.build(name, embedding=table, numeric=numeric, seed=1, hidden=(8,), **how)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if rows:
            weight = net.embedding.source.rows.weight  # type: ignore[operator,union-attr]
            places = torch.randperm(len(weight), generator=random)[:rows]
            weight[places] += torch.randn(rows, 8, generator=random)
            for parameter in net.dense_parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return net.freeze("int8")


def pair(tmp_path: Path, rows: int = 30) -> tuple[Path, Path, Path]:
    """An old and a new package of a model, and the delta between them."""
    old, new, delta = (tmp_path / name for name in ("old", "new", "delta"))
    models.save(model(), old)
    models.save(model(rows, 5), new)
    fe.delta(old, new, delta)
    return old, new, delta


@pytest.mark.parametrize("spec", LAYERS)
def test_a_layer_becomes_the_newer_one_bit_for_bit(spec: str, tmp_path: Path) -> None:
    old, new, delta = (tmp_path / name for name in ("old", "new", "delta"))
    layer(spec).save(old)
    layer(spec, rows=3).save(new)
    made = fe.delta(old, new, delta)
    assert made.file_bytes == delta.stat().st_size
    assert made.changed or old.read_bytes() == new.read_bytes()
    assert fe.apply_delta(old, delta) == (made.base != made.result)
    assert old.read_bytes() == new.read_bytes()
    assert not fe.apply_delta(old, delta), "nothing is left to be done"


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8", "int8(scales=block)", "int4"])
def test_size_follows_the_rows_that_changed(codec: str, tmp_path: Path) -> None:
    schema = fe.Schema([fe.Feature("user", 20_000)])
    trained = fe.embedding(schema, "full", dim=16)
    trained.freeze(codec).save(tmp_path / "old")
    sizes, table = [], next(trained.parameters())
    row = trained.freeze(codec).memory().serving / 20_000
    for step, rows in enumerate((20, 200)):
        with torch.no_grad():
            table[7000 * step : 7000 * step + rows] *= 0.9
        trained.freeze(codec).save(tmp_path / "new")
        fe.delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
        sizes.append((tmp_path / "delta").stat().st_size)
        assert sizes[-1] < 1200 + 1.2 * (row + 4) * (220 * step + 20) + 128 * row
    assert sizes[1] > 2 * sizes[0] - 1200


def test_an_unchanged_package_has_a_tiny_delta(tmp_path: Path) -> None:
    layer("full").save(tmp_path / "old")
    before = (tmp_path / "old").read_bytes()
    made = fe.delta(tmp_path / "old", tmp_path / "old", tmp_path / "delta")
    assert made.file_bytes < 400
    assert not made.changed
    assert not fe.apply_delta(tmp_path / "old", tmp_path / "delta")
    assert (tmp_path / "old").read_bytes() == before


def test_models_and_chains_of_deltas(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}" for number in range(3)]
    for number, path in enumerate(paths):
        models.save(model(10 * number, seed=number), path)
    fe.delta(paths[0], paths[1], tmp_path / "a")
    fe.delta(paths[1], paths[2], tmp_path / "b")
    with pytest.raises(fe.FormatError, match="starts from a package of checksum"):
        fe.apply_delta(paths[0], tmp_path / "b")
    assert fe.apply_delta(paths[0], tmp_path / "a", out=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == paths[1].read_bytes()
    assert fe.apply_delta(tmp_path / "out", tmp_path / "b")
    assert (tmp_path / "out").read_bytes() == paths[2].read_bytes()
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_another_shape_of_one_schema_travels_whole(tmp_path: Path) -> None:
    layer("hash").save(tmp_path / "old")
    fe.embedding(SCHEMA, "unified(lookups=2)", dim=8, ratio=7).freeze("int4").save(tmp_path / "new")
    fe.delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    assert fe.apply_delta(tmp_path / "old", tmp_path / "delta")
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()


def other(**changes: object) -> models.CTRModel:
    features = {"user": {"cardinality": 900}, "item": {"cardinality": 300}}
    if changes.pop("without_item", False):
        del features["item"]
    for name, change in changes.items():
        if name in features:
            features[name] |= change  # type: ignore[arg-type]
    numeric = changes.get("numeric", ["price"])
    schema = fe.Schema([fe.Feature(n, **f) for n, f in features.items()], numeric)  # type: ignore[arg-type]
    return model(schema=schema)


@pytest.mark.parametrize(
    ("newer", "error", "message"),
    [
        (lambda: other(user={"cardinality": 901}), fe.SchemaError, "'user' has cardinality 900"),
        (lambda: other(item={"multi": True}), fe.SchemaError, "'item' has multi None"),
        (lambda: other(numeric=["cost"]), fe.SchemaError, "numeric columns"),
        (lambda: other(without_item=True), fe.SchemaError, "item"),
        (lambda: model(name="dcnv2"), fe.FormatError, "model is 'deepfm' in the old one, 'dcnv2'"),
        (lambda: model(dropout=0.5), fe.FormatError, "config"),
        (lambda: layer("full"), fe.FormatError, "holds a 'model', the new one a 'embedding'"),
    ],
)  # fmt: skip
def test_other_models_and_schemas_are_refused(
    newer: object, error: type[Exception], message: str, tmp_path: Path
) -> None:
    models.save(model(), tmp_path / "old")
    made = newer()  # type: ignore[operator]
    made.save(tmp_path / "new") if hasattr(made, "save") else models.save(made, tmp_path / "new")
    with pytest.raises(error, match=message):
        fe.delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_a_delta_is_no_package(tmp_path: Path) -> None:
    old, _, delta = pair(tmp_path)
    for call in (models.load, fe.load, fe.serve):
        with pytest.raises(fe.FormatError, match="holds a 'delta'"):
            call(delta)
    with pytest.raises(fe.FormatError, match="holds a 'model', not a 'delta'"):
        fe.apply_delta(old, old)
    with pytest.raises(fe.FormatError, match="not from or to a delta"):
        fe.delta(old, delta, tmp_path / "x")
    with pytest.raises(fe.FormatError, match="is not a file"):
        fe.apply_delta(old, tmp_path / "none")


def test_flipped_bytes_leave_the_package_or_give_the_newer_one(tmp_path: Path) -> None:
    old, new, delta = pair(tmp_path)
    before, after, raw = old.read_bytes(), new.read_bytes(), delta.read_bytes()
    random, refused = np.random.default_rng(1), 0
    for position in random.integers(0, len(raw), 150):
        broken = bytearray(raw)
        broken[position] ^= 1 << random.integers(0, 8)
        delta.write_bytes(bytes(broken))
        try:
            fe.apply_delta(old, delta)
            assert old.read_bytes() == after
        except fe.FormatError:
            refused += 1
            assert old.read_bytes() == before
        old.write_bytes(before)
    assert refused > 140
    for keep in (0.0, 0.2, 0.9, 0.999):
        delta.write_bytes(raw[: int(keep * len(raw))])
        with pytest.raises(fe.FormatError):
            fe.apply_delta(old, delta)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["delta", "new", "old"]


@pytest.mark.parametrize(
    "change",
    [
        {"base": None},
        {"result": "0" * 32},
        {"dropped": ["companion.source.rows.codes"]},
        {"dropped": 3},
        {"text": "nothing"},
    ],
)
def test_a_delta_that_is_made_up_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    old, _, delta = pair(tmp_path)
    before = old.read_bytes()
    header, tensors = package.read(delta, "delta")
    package.write(delta, header | change, tensors)
    with pytest.raises(fe.FormatError):
        fe.apply_delta(old, delta)
    assert old.read_bytes() == before


@pytest.mark.parametrize("place", [-1, 10**6])
def test_places_outside_of_a_table_are_refused(place: int, tmp_path: Path) -> None:
    old, _, delta = pair(tmp_path)
    header, tensors = package.read(delta, "delta")
    name = next(one for one in tensors if one.startswith("places:"))
    tensors[name][0] = place
    package.write(delta, header, tensors)
    with pytest.raises(fe.FormatError, match="changes unit"):
        fe.apply_delta(old, delta)
    del tensors[name]
    package.write(delta, header, tensors)
    with pytest.raises(fe.FormatError, match="no part of a delta"):
        fe.apply_delta(old, delta)


KILL = """
import os, signal, sys
import safetensors.torch as torch_files
import featemb as fe

whole = torch_files.save_file

def half(tensors, path, metadata):
    whole(tensors, path, metadata)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

torch_files.save_file = half
fe.apply_delta(sys.argv[1], sys.argv[2])
"""


def test_a_kill_in_the_middle_of_writing_leaves_the_package(tmp_path: Path) -> None:
    old, new, delta = pair(tmp_path)
    before = old.read_bytes()
    told = subprocess.run([sys.executable, "-c", KILL, str(old), str(delta)], capture_output=True)
    assert told.returncode == -signal.SIGKILL, told.stderr
    assert old.read_bytes() == before
    assert fe.apply_delta(old, delta), "the next try does it"
    assert old.read_bytes() == new.read_bytes()


def test_an_error_while_writing_leaves_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, delta = pair(tmp_path)
    before = old.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        fe.apply_delta(old, delta)
    assert old.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["delta", "new", "old"]


def test_a_served_model_goes_on_with_the_newer_one(tmp_path: Path) -> None:
    old, new, delta = pair(tmp_path)
    served, newer = fe.serve(old), models.load(new)
    ids, numeric = torch.tensor([[5, 7], [899, 299]]), torch.tensor([[0.5], [1.0]])
    first, before = served.module, served(ids, numeric)
    assert served.apply(delta)
    assert torch.equal(served(ids, numeric), newer(ids, numeric))
    assert torch.equal(first(ids, numeric), before), "who holds the old one keeps it"
    assert served.checksum == package.read_any(new).checksum
    assert not served.apply(delta)
    fe.delta(new, old, tmp_path / "back")
    assert served.apply(tmp_path / "back")
    assert torch.equal(served(ids, numeric), before)
    models.save(model(60, 9), tmp_path / "third")
    fe.delta(tmp_path / "third", new, tmp_path / "wrong")
    again = served.module
    with pytest.raises(fe.FormatError, match="starts from"):
        served.apply(tmp_path / "wrong")
    assert served.module is again


def test_a_served_layer_shares_what_does_not_change(tmp_path: Path) -> None:
    layer("hash").save(tmp_path / "old")
    layer("hash", rows=2).save(tmp_path / "new")
    fe.delta(tmp_path / "old", tmp_path / "new", tmp_path / "delta")
    served = fe.serve(tmp_path / "old")
    before = dict(served.module.named_buffers())
    assert served.apply(tmp_path / "delta")
    after = dict(served.module.named_buffers())
    shared = [name for name in after if after[name].data_ptr() == before[name].data_ptr()]
    assert shared == ["source.address.seed"]
    newer, every = fe.load(tmp_path / "new"), torch.arange(300)[:, None].expand(-1, 2)
    assert torch.equal(served(every), newer(every))


def test_readers_never_see_a_mixture(tmp_path: Path) -> None:
    old, new, delta = pair(tmp_path, rows=900)
    fe.delta(new, old, tmp_path / "back")
    ids = torch.stack([torch.arange(300), torch.arange(300)], 1)
    numeric = torch.ones(300, 1)
    allowed = [models.load(path)(ids, numeric) for path in (old, new)]
    served, stop = fe.serve(old), threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            answer = served(ids, numeric)
            seen.append(next((i for i, one in enumerate(allowed) if torch.equal(one, answer)), -1))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(12):
        assert served.apply((delta, tmp_path / "back")[turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert set(seen) == {0, 1}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_tensor_is_made_from_any_other(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 40), min_size=0, max_size=3))
    dtype = data.draw(st.sampled_from([torch.uint8, torch.float32, torch.int64, torch.bool]))
    seed = data.draw(st.integers(0, 99))
    random = torch.Generator().manual_seed(seed)
    old = torch.randint(0, 2, shape, generator=random).to(dtype)
    new = old.clone()
    flat = new.view(-1)
    few = torch.randint(0, max(1, flat.numel()), (data.draw(st.integers(0, 5)),), generator=random)
    if flat.numel():
        flat[few] = 1 - flat[few].to(torch.uint8).to(dtype) if dtype != torch.bool else ~flat[few]
    change = changed(old, new)
    if change is None:
        assert not torch.equal(old, new), "an unchanged tensor is never sent whole"
    else:
        assert torch.equal(patched(old, change, "x"), new)
        size = change.places.nbytes + change.units.nbytes
        assert size < max(1, new.nbytes) or not len(change.places)


def call(*arguments: object, code: int = 0) -> None:
    """Run the command in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    assert stopped.value.code == code


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, _ = pair(tmp_path)
    run = tmp_path / "served"
    shutil.copy(old, run)
    call("delta", run, new, "--out", tmp_path / "d")
    told = capsys.readouterr().out
    assert "embedding.source.rows.codes" in told
    assert f"{(tmp_path / 'd').stat().st_size:,} bytes" in told
    call("apply", run, tmp_path / "d", "--out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    assert run.read_bytes() == old.read_bytes()
    call("apply", run, tmp_path / "d")
    assert "brought up to date" in capsys.readouterr().out
    call("apply", run, tmp_path / "d")
    assert "up to date already" in capsys.readouterr().out
    call("apply", tmp_path / "d", tmp_path / "d", code=2)
    assert "starts from a package of checksum" in capsys.readouterr().err
