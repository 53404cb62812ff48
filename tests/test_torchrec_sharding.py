"""Rows that TorchRec divides among two processes: the numbers of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_jobs import run_jobs

import featemb as fe
from featemb.torchrec import refusal, to_torchrec

pytest.importorskip("torchrec")
pytest.importorskip("fbgemm_gpu")

import sharded_jobs as jobs

SHARDABLE = (
    *("full", "hash", "unified", "qr", "multi_hash", "double_hash", "frequency", "mde"),
    *("lowdim", "robe", "field_size", "adapt", "memcom", "dhe"),
)
WHOLE = {
    "cafe": "after_step",
    "zch": "after_step",
    "deeplight": "part MaskedRows",
    "lowprec": "part QuantizedTable .*form of its own",
    "optembed": "after its search",
    "dpq": "LearnedCodes",
    "tt": "read rows by their numbers",
    "pca": "begin_stage, search",
}
SMALL = fe.Schema([fe.Feature("user", 400), fe.Feature("item", 90)])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    todo = [jobs.many, jobs.others, jobs.made_later, jobs.held, jobs.whole_weights, jobs.refused]
    return run_jobs(todo, tmp_path_factory.mktemp("jobs"))


@pytest.mark.slow
def test_losses_rows_and_frozen_answers_are_those_of_one_process(
    answers: list[dict[str, Any]],
) -> None:
    engines = set()
    for answer in answers:
        assert len(answer["many"]) == 10
        for case, (loss, rows, frozen, engine) in answer["many"].items():
            assert loss <= 1e-5, case
            assert rows <= 1e-4, case
            assert frozen <= 1e-4, case
            engines.add((case[2], engine))
    assert engines == {("row_adam", "rows"), ("row_adagrad", "fused"), ("row_sgd", "fused")}


@pytest.mark.slow
def test_every_lookup_method_is_divided(answers: list[dict[str, Any]]) -> None:
    for spec, (loss, rows, frozen, _) in answers[1]["others"].items():
        assert loss <= 1e-5, spec
        assert rows <= 1e-4, spec
        assert frozen <= 1e-4, spec


@pytest.mark.slow
def test_rows_that_each_process_makes_alone_are_the_same(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert len(answer["made_later"]) == 9
        assert set(answer["made_later"].values()) == {0.0}


@pytest.mark.slow
def test_each_process_holds_its_part(answers: list[dict[str, Any]]) -> None:
    total = (400 + 90 + 30) * 16
    first, second = (answer["held"] for answer in answers)
    assert first["row_wise"] == second["row_wise"] == total // 2
    assert first["column_wise"] == second["column_wise"] == total // 2
    assert sorted((first["table_wise"], second["table_wise"])) == [0, total]


@pytest.mark.slow
def test_a_model_of_ones_own_is_sharded_by_torchrec(answers: list[dict[str, Any]]) -> None:
    assert all(answer["whole_weights"] <= 1e-6 for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "words"),
    {
        "cafe": "cafe: CafeEmbedding: .*after_step",
        "batch_norm": "batch normalisation",
        "fused": "no fused row_adam on cpu",
        "rmsprop": "one number for a whole row",
        "other": "sharded for the optimizer 'row_adam'",
        "sharding": "unknown sharding 'rows'",
    }.items(),
)
def test_what_cannot_be_is_said(answers: list[dict[str, Any]], case: str, words: str) -> None:
    import re

    assert re.search(words, answers[0]["refused"][case])
    assert answers[0]["refused"] == answers[1]["refused"]


@pytest.mark.parametrize("method", SHARDABLE)
def test_lookup_methods_can_be_divided(method: str) -> None:
    layer = fe.embedding(SMALL, method, dim=16).eval()
    assert refusal(layer) == ""
    ids = torch.tensor([[3, 4], [399, 89], [3, 0]])
    wanted = layer(ids)
    assert to_torchrec(layer) is layer
    assert torch.equal(layer(ids), wanted)
    assert torch.equal(layer.freeze()(ids), wanted)


@pytest.mark.parametrize("method", WHOLE)
def test_other_methods_say_why_not(method: str) -> None:
    layer = fe.embedding(SMALL, method, dim=16)
    with pytest.raises(fe.ConfigError, match=WHOLE[method]) as told:
        to_torchrec(layer)
    assert method in str(told.value)
    assert "cannot be divided" in str(told.value)


def test_optembed_can_be_divided_after_its_search() -> None:
    layer = fe.embedding(SMALL, "optembed(generations=1, mutants=2, children=2)", dim=8, ratio=4)
    first, search, retrain = layer.stages()
    layer.begin_stage(first)
    with torch.no_grad():
        layer.search(search, lambda: 0.5)
    assert "after its search" in refusal(layer)
    layer.begin_stage(retrain)
    ids = torch.tensor([[3, 4], [399, 89], [3, 0]])
    wanted = layer.train()(ids)
    to_torchrec(layer)
    assert torch.equal(layer(ids), wanted)


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fe.ConfigError, match=r"holds no featemb\.FeatureEmbedding"):
        to_torchrec(torch.nn.Linear(2, 2))
