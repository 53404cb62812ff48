"""Evolutionary search over integer vectors, such as one width a feature.

A candidate is a tuple of F integers. Parents are never changed: tuples are immutable. A candidate
is scored once, and what is returned has been scored.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Candidate = tuple[int, ...]
Gene = Callable[[random.Random, int], int]


@dataclass(frozen=True)
class Evolution:
    """Settings of `evolve`; the defaults are OptEmbed's (Lyu et al., CIKM 2022).

    Attributes:
        generations: how often a new population is made.
        mutants: new candidates a generation from one parent.
        children: new candidates a generation from two parents.
        parents: the best candidates so far, of which a generation is made.
        mutation: probability that a mutant draws a gene anew.
    """

    generations: int = 30
    mutants: int = 10
    children: int = 10
    parents: int = 10
    mutation: float = 0.1


@dataclass
class Found:
    """What a search found.

    Attributes:
        best: candidate of the best score; of equal ones the first scored.
        score: its score.
        history: best score after each generation, the first population's first.
        scored: every candidate that was scored, with its score.
    """

    best: Candidate
    score: float
    history: list[float] = field(default_factory=list)
    scored: dict[Candidate, float] = field(default_factory=dict)


def evolve(
    first: Sequence[Candidate],
    gene: Gene,
    repair: Callable[[Candidate, random.Random], Candidate],
    score: Callable[[list[Candidate]], list[float]],
    settings: Evolution,
    seed: int,
) -> Found:
    """Search for the candidate of the highest score.

    A generation keeps the best parents (elitism), and adds mutants of them and children of two: a
    child takes the first genes of one and the rest of the other, cut between two of the F genes.
    A candidate that was scored before is drawn again, a few times.

    Args:
        first: the first population; repaired, too.
        gene: (source of randomness, its value) -> a gene drawn anew.
        repair: candidate -> one that is allowed, such as within a budget.
        score: candidates -> their scores, higher is better; called with new candidates only.
        settings: sizes.
        seed: the one source of randomness.

    Raises:
        ValueError: there is no first candidate.
    """
    rng = random.Random(seed)
    known: dict[Candidate, float] = {}

    def judge(candidates: Sequence[Candidate]) -> None:
        new = [one for one in dict.fromkeys(candidates) if one not in known]
        if new:
            known.update(zip(new, score(new), strict=True))

    if not first:
        raise ValueError("a search needs a first candidate")
    judge([repair(candidate, rng) for candidate in first])
    history = [max(known.values())]
    for _ in range(settings.generations):
        parents = sorted(known, key=lambda one: -known[one])[: max(1, settings.parents)]
        judge(_population(parents, gene, repair, settings, rng, known))
        history.append(max(known.values()))
    best = max(known, key=known.__getitem__)
    return Found(best, known[best], history, known)


def _population(
    parents: list[Candidate],
    gene: Gene,
    repair: Callable[[Candidate, random.Random], Candidate],
    settings: Evolution,
    rng: random.Random,
    known: Mapping[Candidate, float],
) -> list[Candidate]:
    """Return mutants of the parents in turns, and children of two drawn parents."""
    population: list[Candidate] = []
    for number in range(settings.mutants + settings.children):
        for _ in range(_TRIES):
            if number < settings.mutants:
                made = _mutant(parents[number % len(parents)], gene, settings, rng)
            else:
                made = _child(parents, rng)
            candidate = repair(made, rng)
            if candidate not in known and candidate not in population:
                break
        population.append(candidate)
    return population


_TRIES = 10


def _mutant(
    parent: Candidate,
    gene: Gene,
    settings: Evolution,
    rng: random.Random,
) -> Candidate:
    return tuple(
        gene(rng, value) if rng.random() < settings.mutation else value for value in parent
    )


def _child(parents: Sequence[Candidate], rng: random.Random) -> Candidate:
    one, other = (parents[rng.randrange(len(parents))] for _ in range(2))
    if len(one) < 2:
        return one
    cut = rng.randrange(1, len(one))
    return one[:cut] + other[cut:]
