"""`zch`: who holds a slot, against a plain dictionary and against TorchRec; rows, state, bytes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import featemb as fe
from featemb import torchrec
from featemb.parts.managed import ManagedAddress

DIM = 4
SCHEMA = fe.Schema([fe.Feature("user", 300), fe.Feature("item", 200), fe.Feature("flag", 2)])
ENDLESS = fe.Schema([fe.Feature("url"), fe.Feature("agent")])
HUGE = fe.Schema([fe.Feature("url", 2**40), fe.Feature("flag", 2)])
POLICIES = ("lfu", "lru", "distance_lfu")


def needs_torchrec() -> None:
    pytest.importorskip("torchrec")
    pytest.importorskip("fbgemm_gpu")


def stream(schema: fe.Schema, steps: int, batch: int = 24, seed: int = 0) -> list[Tensor]:
    """Skewed ids ``[B, F]`` whose popular ones change; far ones where the feature is unbounded."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for step in range(steps):
        columns = []
        for feature in schema.features:
            known = feature.cardinality or 2**63
            some = min(known, 300)
            skewed = (torch.rand(batch, generator=generator) ** 3 * some).long()
            columns.append((skewed + 7 * step) % some * (known // some))
        made.append(torch.stack(columns, 1))
    return made


def address_of(layer: fe.FeatureEmbedding) -> ManagedAddress:
    found = layer.get_submodule("source.address")
    assert isinstance(found, ManagedAddress)
    return found


def holders(layer: fe.FeatureEmbedding) -> dict[tuple[int, int], int]:
    """Slot of each (feature, id) that holds one."""
    address = address_of(layer)
    starts = address.starts.tolist()
    return {
        (f, int(address.ids[place])): int(address.slots[place])
        for f in range(len(starts) - 1)
        for place in range(starts[f], starts[f + 1])
    }


def step(layer: fe.FeatureEmbedding, optimizer: torch.optim.Optimizer, ids: Tensor, n: int) -> None:
    optimizer.zero_grad()
    layer(ids).square().sum().backward()
    layer.after_backward()
    optimizer.step()
    layer.after_step(n)


def trained(
    spec: str, schema: fe.Schema, steps: int = 23, optimizer: str = "RowAdam", **size: Any
) -> tuple[fe.FeatureEmbedding, torch.optim.Optimizer]:
    layer = fe.embedding(schema, spec, dim=DIM, seed=3, **size)
    made = getattr(fe.optim, optimizer)(layer.parameters(), lr=0.1)
    for n, ids in enumerate(stream(schema, steps), start=1):
        step(layer, made, ids, n)
    return layer, made


class Plain:
    """The rule, one id at a time: dictionaries from (feature, id)."""

    def __init__(self, slots: int, policy: str, decay: float, interval: int) -> None:
        self.policy, self.decay, self.interval = policy, decay, interval
        self.slot: dict[tuple[int, int], int] = {}
        self.free = list(range(slots))
        self.count: Counter[tuple[int, int]] = Counter()
        self.last: dict[tuple[int, int], int] = {}
        self.steps, self.slots = 0, slots

    def worth(self, pair: tuple[int, int]) -> float:
        distance = float(self.steps - self.last[pair] + 1) ** self.decay
        worth = {"lfu": self.count[pair], "lru": -distance}
        return worth.get(self.policy, self.count[pair] / distance)

    def see(self, pairs: list[tuple[int, int]]) -> None:
        self.steps += 1
        self.count.update(pairs)
        self.last.update(dict.fromkeys(pairs, self.steps))
        if self.steps % self.interval == 0:
            self.turn()

    def turn(self) -> None:
        held = [(-self.worth(pair), 0, 0, pair) for pair in self.slot]
        asked = set(self.count) - set(self.slot)
        asking = [(-self.worth(pair), 1, -self.count[pair], pair) for pair in asked]
        ranked = [pair for *_, pair in sorted(held + asking)]
        best = set(ranked[: self.slots])
        losers = [pair for pair in ranked if pair in self.slot and pair not in best]
        winners = [pair for pair in ranked if pair in best and pair not in self.slot]
        # the free slots that are left are the first ones; behind them come those of losers
        left = len(self.free) - max(0, len(winners) - len(losers))
        given = self.free[left:] + [self.slot.pop(pair) for pair in losers]
        self.free = self.free[:left]
        self.slot.update(zip(winners, given, strict=True))
        for pair in set(self.count) - set(self.slot):
            del self.count[pair]
            del self.last[pair]


RULES = [(policy, decay) for policy in POLICIES for decay in (1.0, 0.5)][1:]


@pytest.mark.parametrize(("policy", "decay"), RULES)
@pytest.mark.parametrize("schema", [SCHEMA, HUGE], ids=["small", "huge"])
def test_slots_are_those_of_the_plain_rule(schema: fe.Schema, policy: str, decay: float) -> None:
    settings = f"policy={policy}, decay={decay}, interval=4, candidates=4000"
    layer = fe.embedding(schema, f"zch({settings}, rows=70)", dim=DIM)
    optimizer = fe.optim.RowAdam(layer.parameters())
    plain = Plain(len(address_of(layer).ids), policy, decay, interval=4)
    evictions = 0
    for n, ids in enumerate(stream(schema, 41), start=1):
        managed = [f for f, whole in enumerate(address_of(layer).cold.whole) if not whole]
        plain.see([(f, one) for f in managed for one in ids[:, f].tolist()])
        before = set(holders(layer))
        step(layer, optimizer, ids, n)
        evictions += len(before - set(holders(layer)))
        assert holders(layer) == plain.slot
    assert evictions > 20


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("start", ["initial", "shared"])
@pytest.mark.parametrize("schema", [SCHEMA, fe.Schema([fe.Feature("url")])], ids=["all", "url"])
def test_torchrec_takes_the_same_turns(schema: fe.Schema, policy: str, start: str) -> None:
    needs_torchrec()
    rule = f"rows=70, policy={policy}, interval=5, start={start}"
    ours, _ = trained(f"zch({rule}, candidates=4000)", schema)
    theirs, _ = trained(f"zch({rule}, engine=torchrec)", schema)
    assert holders(ours)
    for name, tensor in ours.source.state_dict().items():
        assert torch.equal(tensor, theirs.source.state_dict()[name]), name


@pytest.mark.parametrize("schema", [SCHEMA, ENDLESS], ids=["small", "endless"])
def test_no_two_ids_share_a_slot(schema: fe.Schema) -> None:
    layer = fe.embedding(schema, "zch(interval=3)", dim=DIM, budget=3000)
    optimizer = fe.optim.RowAdam(layer.parameters())
    for n, ids in enumerate(stream(layer.schema, 20), start=1):
        step(layer, optimizer, ids, n)
        found = holders(layer)
        assert len(set(found.values())) == len(found) <= len(address_of(layer).ids)
        assert sorted(address_of(layer).slots.tolist()) == list(range(len(address_of(layer).ids)))
        for (f, one), slot in found.items():
            rows = address_of(layer)(torch.tensor([one]), torch.tensor([f]))
            assert rows.tolist() == [[slot]]
    assert found


@pytest.mark.parametrize("optimizer", ["RowAdam", "RowAdagrad", "RowRMSprop", "DenseAdam", "Adam"])
def test_an_evicted_row_starts_anew_and_others_stay(optimizer: str) -> None:
    layer = fe.embedding(SCHEMA, "zch(rows=70, interval=5, init=0.01)", dim=DIM)
    kind = getattr(fe.optim, optimizer, None) or getattr(torch.optim, optimizer)
    made = kind(layer.parameters(), lr=0.1)
    fe.optim.follow(made)
    weight = layer.get_parameter("source.rows.weight")
    turns = 0
    for n, ids in enumerate(stream(SCHEMA, 25), start=1):
        made.zero_grad()
        layer(ids).square().sum().backward()
        made.step()
        before, held = weight.detach().clone(), holders(layer)
        state = {k: v.clone() for k, v in made.state[weight].items() if torch.is_tensor(v)}
        layer.after_step(n)
        new = [slot for pair, slot in holders(layer).items() if pair not in held]
        old = sorted(set(range(len(weight))) - set(new))
        assert torch.equal(weight[old], before[old])
        turns += bool(new) and n > 5
        if new:
            assert weight[new].abs().max() <= 0.01 < before[old].abs().max()
            assert weight[new].std() > 0.003
        for name, tensor in made.state[weight].items():
            if torch.is_tensor(tensor) and tensor.dim() and len(tensor) == len(weight):
                assert not tensor[new].any(), name
                assert torch.equal(tensor[old], state[name][old]), name
                assert tensor[old].any(), name
    assert turns > 2


def test_a_row_can_start_from_what_its_id_read_before() -> None:
    layer = fe.embedding(SCHEMA, "zch(rows=70, interval=5, start=shared, cold_share=0.0)", dim=DIM)
    optimizer = fe.optim.RowAdam(layer.parameters(), lr=0.1)
    for n, ids in enumerate(stream(SCHEMA, 5), start=1):
        before = layer(ids).detach()
        step(layer, optimizer, ids, n)
    weight = layer.get_parameter("source.rows.weight")
    slots = len(address_of(layer).ids)
    assert not torch.equal(before, layer(ids))  # the step moved the rows
    for (f, _), slot in holders(layer).items():
        assert torch.equal(weight[slot], weight[slots + f])
    assert not optimizer.state[weight]["exp_avg"][:slots].any()


@pytest.mark.parametrize("engine", ["featemb", "torchrec"])
@pytest.mark.parametrize("policy", POLICIES)
def test_training_resumes_to_the_bit_within_an_interval(policy: str, engine: str) -> None:
    if engine == "torchrec":
        needs_torchrec()
    spec = f"zch(rows=70, interval=6, policy={policy}, engine={engine})"
    straight, first = trained(spec, SCHEMA, steps=15)
    resumed = fe.embedding(SCHEMA, spec, dim=DIM, seed=8)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    second = fe.optim.RowAdam(resumed.parameters(), lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for n, ids in enumerate(stream(SCHEMA, 20, seed=1), start=16):
        step(straight, first, ids, n)
        step(resumed, second, ids, n)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("spec", ["zch(rows=70)", "zch(rows=70)+int8", "zch(rows=70)+pq(parts=2)"])
def test_reading_changes_nothing_and_serving_answers_the_same(spec: str) -> None:
    layer, _ = trained(spec, SCHEMA)
    assert holders(layer)
    before = copy.deepcopy(layer.state_dict())
    ids = stream(SCHEMA, 1, seed=5)[0]
    layer.eval()
    for n in range(20):
        layer(ids).square().sum().backward()
        layer.after_step(n)
    layer.train()
    with torch.no_grad():
        layer(ids)
    layer.after_step(20)
    assert all(torch.equal(one, before[name]) for name, one in layer.state_dict().items())
    frozen, exact = layer.eval().freeze(), layer.freeze("fp32")
    assert torch.equal(exact(ids), layer(ids))
    assert frozen.memory().parts == layer.memory().parts
    frozen_before = copy.deepcopy(frozen.state_dict())
    frozen(ids)
    assert all(torch.equal(frozen.state_dict()[k], v) for k, v in frozen_before.items())
    assert "counters" not in frozen.memory().parts
    assert not any("keeper" in name for name in frozen.state_dict())


def test_unseen_ids_read_the_rows_that_ids_without_a_slot_share() -> None:
    layer, _ = trained("zch(rows=70, cold_share=0.0)", SCHEMA)
    held = holders(layer)
    unseen = [one for one in range(300) if (0, one) not in held]
    ids = torch.tensor([[one, 0, 0] for one in unseen])
    vectors = layer.eval()(ids)[:, :DIM]
    assert torch.equal(vectors, vectors[:1].expand_as(vectors))
    assert torch.equal(layer.freeze()(ids)[:, :DIM], vectors)


def test_huge_and_endless_ids_take_no_memory_and_budgets_are_exact() -> None:
    for schema, size in ((HUGE, {"budget": 50_000}), (ENDLESS, {"budget": 50_000})):
        layer = fe.embedding(schema, "zch", dim=16, **size)
        used = layer.memory()
        assert 50_000 - (16 * 4 + 12) < used.serving <= 50_000
        tensors = [*layer.parameters(), *layer.buffers()]
        assert used.training == sum(one.numel() * one.element_size() for one in tensors)
        assert used.training_parts["counters"] == 16 * len(address_of(layer).ids)
    far = torch.tensor([[2**63 - 1, 2**62 + 1], [2**40, 3]])
    optimizer = fe.optim.RowAdam(layer.parameters(), lr=0.1)
    for n in range(1, 11):
        step(layer, optimizer, far, n)
    assert sorted(holders(layer)) == [(0, 2**40), (0, 2**63 - 1), (1, 3), (1, 2**62 + 1)]
    assert torch.equal(layer.eval().freeze()(far), layer(far))


def test_where_all_ids_have_rows_there_is_nothing_to_manage() -> None:
    layer = fe.embedding(SCHEMA, "zch(rows=600)", dim=DIM)
    assert layer.memory().parts["rows"] == 502 * DIM * 4
    layer, _ = trained("zch(rows=600)", SCHEMA, steps=11)
    assert not len(address_of(layer).ids)
    tight, _ = trained("zch(rows=3)", SCHEMA, steps=11)  # shared rows alone
    assert not len(address_of(tight).ids)


def test_few_candidates_keep_the_best() -> None:
    layer = fe.embedding(SCHEMA, "zch(rows=20, interval=10, candidates=8, policy=lfu)", dim=DIM)
    optimizer = fe.optim.RowAdam(layer.parameters())
    for n in range(1, 11):  # one id comes at every step, the others once
        ids = torch.tensor([[250, 150, 0], [n, n, 0], [n + 20, n + 20, 0]])
        step(layer, optimizer, ids, n)
    assert {(0, 250), (1, 150)} <= set(holders(layer))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ("policy=fifo", "policy must be one of lfu, lru, distance_lfu"),
        ("interval=0", "interval must be at least 1"),
        ("decay=0.0", "decay must be finite and above 0"),
        ("cold_share=1.0", "cold_share must be at least 0 and below 1"),
        ("start=zeros", "start must be one of initial, shared"),
        ("engine=own", "engine must be one of featemb, torchrec"),
        ("candidates=0", "candidates must be at least 1"),
        ("engine=torchrec, candidates=9", "candidates must be at least 1, or none with"),
        ("rows=2", "rows must be at least 3"),
        ("polcy=lru", "policy"),
    ],
)
def test_bad_settings_are_named(settings: str, word: str) -> None:
    with pytest.raises(fe.ConfigError, match=word):
        fe.embedding(SCHEMA, f"zch({settings})", dim=DIM)


def test_torchrec_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featemb.torchrec.rows.find_spec", lambda name: None)
    fe.embedding(SCHEMA, "zch(rows=70)", dim=DIM)
    with pytest.raises(fe.ConfigError, match=r"pip install 'featemb\[torchrec\]'"):
        fe.embedding(SCHEMA, "zch(rows=70, engine=torchrec)", dim=DIM)


def test_torchrec_says_which_ids_it_cannot_tell_apart() -> None:
    needs_torchrec()
    layer = fe.embedding(ENDLESS, "zch(interval=2, engine=torchrec)", dim=DIM, budget=3000)
    optimizer = fe.optim.RowAdam(layer.parameters())
    step(layer, optimizer, torch.tensor([[2**61, 7]]), 1)
    with pytest.raises(fe.IdError, match=r"'agent': id 9223372036854775807 .*engine=featemb"):
        step(layer, optimizer, torch.tensor([[1, 2**63 - 1]]), 2)


def test_rows_cannot_be_divided_among_processes() -> None:
    reason = torchrec.refusal(fe.embedding(SCHEMA, "zch(rows=70)", dim=DIM))
    assert "zch: ZchEmbedding" in reason
    assert "after_step" in reason


def test_raw_ids_in_a_keyed_jagged_tensor() -> None:
    needs_torchrec()
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    tables = [
        EmbeddingBagConfig(
            name=name, embedding_dim=8, num_embeddings=2**40, feature_names=[f"f_{name}"]
        )
        for name in ("url", "agent")
    ]
    bags = torchrec.FeatureEmbeddingBagCollection(tables, "zch(interval=2)", budget=9000)
    optimizer = fe.optim.RowAdam(bags.parameters(), lr=0.1)
    features = KeyedJaggedTensor.from_lengths_sync(
        keys=["f_url", "f_agent"],
        values=torch.tensor([5, 2**39, 7, 2**38]),
        lengths=torch.tensor([1, 1, 0, 2]),
    )
    (layer,) = bags.layers
    for n in (1, 2):
        optimizer.zero_grad()
        bags(features).values().square().sum().backward()
        optimizer.step()
        layer.after_step(n)
    assert set(holders(layer)) == {(0, 5), (0, 2**39), (1, 7), (1, 2**38)}
    answers = bags.eval()(features)
    assert list(answers.keys()) == ["f_url", "f_agent"]
    assert torch.equal(bags.freeze()(features).values(), answers.values())


PROGRAM = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
import test_zch
layer, _ = test_zch.trained("zch(rows=70, interval=3)", test_zch.SCHEMA)
digest = hashlib.sha256()
for name, tensor in layer.state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest(), layer.memory().training)
"""


def test_processes_agree_to_the_bit() -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    found = [
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        for seed in ("1", "2")
    ]
    assert [one.returncode for one in found] == [0, 0], found[0].stderr
    assert found[0].stdout == found[1].stdout != ""


def test_a_step_that_reads_nothing_of_the_slots_counts_too() -> None:
    layer = fe.embedding(SCHEMA, "zch(rows=70, interval=2)", dim=DIM)
    layer.after_step(1)  # no lookup: nothing to count
    assert not holders(layer)
    bags = fe.Schema([fe.Feature("tags", 400, multi=True)])
    layer = fe.embedding(bags, "zch(rows=40, interval=2)", dim=DIM)
    optimizer = fe.optim.RowAdam(layer.parameters())
    empty = {"tags": (torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))}
    full = {"tags": (torch.tensor([5, 5, 9]), torch.tensor([2, 0, 1]))}
    for n, ids in enumerate((empty, full, full, empty), start=1):
        step(layer, optimizer, ids, n)  # type: ignore[arg-type]
    assert set(holders(layer)) == {(0, 5), (0, 9)}
