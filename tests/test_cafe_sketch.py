"""CAFE against a sketch of dicts and lists that takes one id at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from test_methods import plain_bucket, plain_mix, plain_salts
from torch import Tensor, nn

import featemb as fe
from featemb import optim
from featemb.parts.sketch import SketchAddress
from featemb.sketch import HotSketch

SCHEMA = fe.Schema([fe.Feature("user", 900), fe.Feature("item", 400), fe.Feature("day", 3)])
ENDLESS = fe.Schema([fe.Feature("user"), fe.Feature("item")])
DIM = 4
COLD, MEDIUM = -1, -2


def zipf_ids(step: int, batch: int = 48, schema: fe.Schema = SCHEMA) -> Tensor:
    """Skewed ids ``[B, F]``: id 0 is the most frequent one of a feature."""
    rng = np.random.default_rng(step)
    sizes = [feature.cardinality or 2**40 for feature in schema.features]
    return torch.from_numpy(np.stack([(rng.zipf(1.3, batch) - 1) % n for n in sizes], 1))


@dataclass
class Slot:
    key: int = -1
    score: float = 0.0
    pointer: int = COLD


@dataclass
class PlainCafe:
    """The whole method one id at a time: sketch, table and promotions."""

    layer: Any
    buckets: list[list[Slot]] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    inserted: int = 0
    demoted: int = 0

    def __post_init__(self) -> None:
        self.address: SketchAddress = self.layer.source.address
        self.salts = plain_salts(self.layer.seed, 2 * len(self.address.sizes) + 3)
        hot = self.address.keys.shape[0]
        self.buckets = [[Slot() for _ in range(4)] for _ in range(hot)]
        self.free = list(range(hot - 1, -1, -1))

    def key(self, value: int, f: int) -> int:
        if self.address.first_ids:
            return self.address.first_ids[f] + value
        return plain_mix(value + self.salts[len(self.address.sizes) + f]) & (2**63 - 1)

    def bucket(self, key: int) -> list[Slot]:
        return self.buckets[plain_bucket(key, self.salts[-3], len(self.buckets))]

    def rows(self, value: int, f: int) -> list[int]:
        """The rows that an id reads now."""
        key, one = self.key(value, f), self.address
        pointer = next((s.pointer for s in self.bucket(key) if s.key == key), COLD)
        if pointer >= 0:
            return [pointer]
        if pointer == MEDIUM:
            size = one.medium_size
            return [one.medium_offset + plain_bucket(key, s, size) for s in self.salts[-2:]]
        inside = value if one.whole[f] else plain_bucket(value, self.salts[f], one.sizes[f])
        return [one.offsets[f] + inside]

    def step(self, lookups: list[tuple[int, int, float]]) -> list[tuple[list[int], int]]:
        """Count (id, feature, score); return the (rows read, hot row) of each promotion."""
        sketch: HotSketch = self.layer.sketch
        total: dict[tuple[int, int], float] = {}
        for value, f, score in lookups:
            if not self.address.whole[f]:
                total[value, f] = total.get((value, f), 0.0) + score
        entrants: dict[int, list[tuple[float, int]]] = {}
        for (value, f), score in total.items():
            key = self.key(value, f)
            slot = next((s for s in self.bucket(key) if s.key == key), None)
            if slot is not None:
                slot.score += score
            else:
                home = plain_bucket(key, self.salts[-3], len(self.buckets))
                entrants.setdefault(home, []).append((-score, key))
        for home, keys in entrants.items():
            self.enter(self.buckets[home], sorted(keys))
        moved = self.promote(total, sketch, len(lookups))
        self.inserted += len(lookups)
        if self.inserted > 10 * len(self.buckets) * sketch.threshold:
            self.inserted = 0
            self.fade(sketch)
        return moved

    @staticmethod
    def enter(slots: list[Slot], keys: list[tuple[float, int]]) -> None:
        taken: set[int] = set()
        for negative, key in keys:
            open_slots = [
                (s.score, i) for i, s in enumerate(slots) if s.pointer < 0 and i not in taken
            ]
            if open_slots:
                score, i = min(open_slots)
                taken.add(i)
                slots[i] = Slot(key, score - negative, COLD)

    def promote(
        self, total: dict[tuple[int, int], float], sketch: HotSketch, lookups: int
    ) -> list[tuple[list[int], int]]:
        found = []
        for value, f in total:
            key = self.key(value, f)
            slot = next((s for s in self.bucket(key) if s.key == key), None)
            if slot is not None and slot.pointer < 0:
                found.append((-slot.score, key, value, f, slot))
        found.sort(key=lambda one: one[:2])
        moved = []
        for number, (negative, _, value, f, slot) in enumerate(found):
            can = number < 64 + int(lookups / sketch.threshold) and self.free
            if can and -negative >= sketch.threshold:
                row = self.free.pop()
                moved.append((self.rows(value, f), row))
                slot.pointer = row
            elif sketch.medium is not None and -negative >= sketch.medium:
                slot.pointer = MEDIUM
        return moved

    def fade(self, sketch: HotSketch) -> None:
        for slot in (s for slots in self.buckets for s in slots):
            slot.score *= sketch.decay
            if slot.pointer >= 0 and slot.score >= sketch.threshold:
                continue
            if slot.pointer >= 0:
                self.free.append(slot.pointer)
                self.demoted += 1
            medium = sketch.medium is not None and slot.score >= sketch.medium
            slot.pointer = MEDIUM if medium else COLD


def read_out(layer: Any) -> Tensor:
    return torch.linspace(-1, 1, sum(layer.widths)) + 0.03


def train_step(layer: Any, optimizers: list[Any], ids: Any, label: Tensor, step: int) -> Tensor:
    """One step of a linear model; returns the gradient of the layer's output."""
    out = layer(ids)
    out.retain_grad()
    logits = out @ read_out(layer)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, label)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    layer.after_step(step)
    assert out.grad is not None
    return out.grad


def label_of(ids: Tensor, step: int) -> Tensor:
    noise = torch.rand(len(ids), generator=torch.Generator().manual_seed(step))
    return (noise < 0.1 + 0.7 * (ids[:, 0] % 2)).float()


SPECS = [
    ("cafe(rows=120, threshold=4.0, decay=0.6)", SCHEMA),
    ("cafe(rows=60, threshold=2.0, decay=0.3, hot_share=0.6)", SCHEMA),
    ("cafe(rows=60, threshold=2.5, decay=0.25, score=frequency, hot_share=0.5)", SCHEMA),
    ("cafe(rows=150, levels=3, threshold=6.0, decay=0.7, hot_share=0.2)", SCHEMA),
    ("cafe(rows=90, levels=3, threshold=5.0, decay=0.5)", ENDLESS),
]


@pytest.mark.parametrize("optimizer", ["row_adam", "dense_adam"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("spec", "schema"), SPECS)
def test_sketch_is_space_saving(
    monkeypatch: pytest.MonkeyPatch, spec: str, schema: fe.Schema, fixed: bool, optimizer: str
) -> None:
    if fixed:  # as on a device that is not the CPU
        monkeypatch.setattr("featemb.sketch.shorten", lambda used, *arrays: arrays)
    layer = fe.embedding(schema, spec, dim=DIM, seed=7)
    plain = PlainCafe(layer)
    optimizers = optim.build(layer, 0.05, optimizer)
    promoted = mediums = 0
    for step in range(40):
        ids = zipf_ids(step, schema=schema)
        wanted = [[plain.rows(v, f) for f, v in enumerate(row)] for row in ids.tolist()]
        weight = layer.source.rows.weight.detach().clone()
        out = layer(ids).detach().view(*ids.shape, DIM)
        for b, row in enumerate(wanted):
            for f, rows in enumerate(row):
                assert torch.allclose(out[b, f], weight[rows].mean(0), atol=1e-6)
        grad = train_step(layer, optimizers, ids, label_of(ids, step), step + 1)
        norms = grad.view(*ids.shape, DIM).norm(dim=-1).double()
        watched = [f for f, whole in enumerate(layer.source.address.whole) if not whole]
        mean = norms[:, watched].mean()
        scores = norms / mean if "frequency" not in spec else torch.ones_like(norms)
        lookups = [
            (int(ids[b, f]), f, float(scores[b, f])) for b in range(len(ids)) for f in watched
        ]
        promoted += len(plain.step(lookups))
        slots = [s for bucket in plain.buckets for s in bucket]
        assert layer.source.address.keys.view(-1).tolist() == [s.key for s in slots]
        assert layer.source.address.pointers.view(-1).tolist() == [s.pointer for s in slots]
        assert layer.sketch.scores.view(-1).tolist() == pytest.approx(
            [s.score for s in slots], abs=1e-4, rel=1e-4
        )
        assert layer.sketch.free_rows[: int(layer.sketch.num_free)].tolist() == plain.free
        mediums += sum(slot.pointer == MEDIUM for slot in slots)
    assert promoted > 5
    assert plain.demoted > 0
    assert (mediums > 0) == ("levels=3" in spec)


@pytest.mark.parametrize("optimizer", ["row_adam", "dense_adam", "row_adagrad"])
@pytest.mark.parametrize("spec", ["cafe(rows=120, threshold=4.0)", SPECS[3][0]])
def test_a_promoted_row_takes_its_state_along(spec: str, optimizer: str) -> None:
    layer = fe.embedding(SCHEMA, spec, dim=DIM)
    plain = PlainCafe(layer)
    optimizers = optim.build(layer, 0.05, optimizer)
    weight = layer.source.rows.weight
    checked = set()
    for step in range(12):
        ids = zipf_ids(step)
        before: list[Tensor] = []
        after_step = type(layer).after_step

        def watch(number: int, before: list[Tensor] = before, after_step: Any = after_step) -> None:
            state = optimizers[0].state[weight]
            before += [weight.detach().clone(), *(s.clone() for s in state.values() if s.dim())]
            after_step(layer, number)

        layer.after_step = watch
        grad = train_step(layer, optimizers, ids, label_of(ids, step), step + 1)
        norms = grad.view(*ids.shape, DIM).norm(dim=-1)
        watched = [f for f, whole in enumerate(layer.source.address.whole) if not whole]
        scores = norms / norms[:, watched].mean()
        lookups = [(int(ids[b, f]), f, float(scores[b, f])) for b in range(48) for f in watched]
        state = [s for s in optimizers[0].state[weight].values() if s.dim()]
        for rows, hot in plain.step(lookups):
            for old, new in zip(before, [weight.detach(), *state], strict=True):
                assert torch.allclose(new[hot], old[rows].mean(0), atol=1e-7)
                checked.add((len(rows), len(before)))
    assert len(before) == (2 if optimizer == "row_adagrad" else 3)
    assert {rows for rows, _ in checked} == ({1, 2} if "levels=3" in spec else {1})
