"""The evolutionary search, on problems whose best candidate is known."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from featemb.evolution import Candidate, Evolution, evolve

PLANTED = (3, 16, 1, 9, 12, 5, 7, 2)
FEATURES, DIM = len(PLANTED), 16


def distance(candidate: Candidate) -> float:
    return -float(sum(abs(a - b) for a, b in zip(candidate, PLANTED, strict=True)))


def any_width(rng: random.Random, value: int) -> int:
    return rng.randint(1, DIM)


def as_it_is(candidate: Candidate, rng: random.Random) -> Candidate:
    return candidate


def drawn(count: int = 20, seed: int = 0) -> list[Candidate]:
    rng = random.Random(seed)
    return [tuple(rng.randint(1, DIM) for _ in range(FEATURES)) for _ in range(count)]


def run(seed: int = 0, generations: int = 60, **settings: float):  # type: ignore[no-untyped-def]
    calls: list[list[Candidate]] = []

    def score(candidates: list[Candidate]) -> list[float]:
        calls.append(list(candidates))
        return [distance(one) for one in candidates]

    evolution = Evolution(generations=generations, **settings)  # type: ignore[arg-type]
    return evolve(drawn(), any_width, as_it_is, score, evolution, seed), calls


def test_it_finds_what_was_planted() -> None:
    found, _ = run(generations=150)
    assert found.best == PLANTED
    assert found.score == 0.0


def test_what_it_returns_was_scored_and_nothing_twice() -> None:
    found, calls = run()
    every = [one for call in calls for one in call]
    assert len(every) == len(set(every)) == len(found.scored)
    assert found.best in found.scored
    assert found.score == distance(found.best) == max(map(distance, every))
    assert all(len(call) <= 20 for call in calls)


def test_the_best_never_gets_worse() -> None:
    found, _ = run()
    assert found.history == sorted(found.history)
    assert len(found.history) == 61


def test_one_seed_one_result() -> None:
    one, two, other = run(4)[0], run(4)[0], run(5)[0]
    assert one == two
    assert one.scored != other.scored


def test_children_are_cut_anywhere_between_two_genes() -> None:
    """Every place of F - 1 is used, and a child's genes come from its parents, in order."""
    parents = [(1,) * FEATURES, (DIM,) * FEATURES]
    children: set[Candidate] = set()

    def score(candidates: list[Candidate]) -> list[float]:
        children.update(candidates)
        return [0.0] * len(candidates)

    settings = Evolution(generations=40, mutants=0, children=10, parents=2)
    evolve(parents, any_width, as_it_is, score, settings, 0)
    # cut once: one run of one parent's gene, then one of the other's
    once = [child for child in children if sum(a != b for a, b in pairwise(child)) == 1]
    assert {child.index(child[-1]) for child in once} == set(range(1, FEATURES))


def test_candidates_are_repaired_before_they_are_scored() -> None:
    def even(candidate: Candidate, rng: random.Random) -> Candidate:
        return tuple(value - value % 2 or 2 for value in candidate)

    def score(candidates: list[Candidate]) -> list[float]:
        assert all(value % 2 == 0 for one in candidates for value in one)
        return [distance(one) for one in candidates]

    found = evolve(drawn(), any_width, even, score, Evolution(generations=20), 0)
    assert all(value % 2 == 0 for value in found.best)


def test_one_gene_and_no_generation_work() -> None:
    found = evolve([(4,)], any_width, as_it_is, lambda c: [0.0] * len(c), Evolution(), 0)
    assert found.best in found.scored
    none = evolve(drawn(), any_width, as_it_is, lambda c: list(map(distance, c)), Evolution(0), 0)
    assert none.best == max(drawn(), key=distance)
    with pytest.raises(ValueError, match="first candidate"):
        evolve([], any_width, as_it_is, lambda c: [], Evolution(), 0)
