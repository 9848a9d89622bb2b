"""Pairs of memories of disjoint facts from the pocket's world: lessons and probes, all from a seed.

No subject is in both memories of a pair. A fact is trained in five question forms; it is questioned in form 4,
which no lesson trains, and in a form that the base never saw either. The seeds are unlike training's.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "pocket"))

from world import Statement, held_ask, set_ask, statements

from lorewright.knowledge.data import Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, prepare
from lorewright.knowledge.scoring import normalise
from lorewright.models.model import Model

N_FACTS = 24
HELD_FORM = 4
KINDS = ("paraphrase", "new form", "as trained", "unknown")
"""Probes: held from the adapter; held from the base too; form 1 as trained; to be declined."""


def pair(number: int) -> tuple[list[Statement], list[Statement]]:
    """The facts of two memories, no subject in both."""
    rng, taken = random.Random(f"merge falsifier {number}"), set[str]()
    return _facts(rng, taken), _facts(rng, taken)


def _facts(rng: random.Random, taken: set[str]) -> list[Statement]:
    """So many facts about subjects that were not taken, which they are afterwards."""
    drawn: dict[str, Statement] = {}
    while len(drawn) < N_FACTS:
        for item in statements(rng, N_FACTS):
            if normalise(item.subject) not in taken and len(drawn) < N_FACTS:
                drawn.setdefault(normalise(set_ask(item, 1)), item)
    taken |= {normalise(item.subject) for item in drawn.values()}
    return list(drawn.values())


def lesson(model: Model, items: list[Statement], config: LessonConfig) -> Lesson:
    """What a memory of these facts is trained on, its probes being ours."""
    facts: dict[str, Fact] = {}
    for i, item in enumerate(items):
        for form in config.train_sets:
            question = set_ask(item, form)
            facts.setdefault(normalise(question), Fact(f"{i}-{form}", question, item.value))
    made = prepare(
        Knowledge(facts=tuple(facts.values())),
        ask_llm=list,
        closed_book=model.generate,
        config=config,
    )
    rng = random.Random("new forms")
    probes = [
        Probe(f"{kind}-{i}", question, (item.value,), "paraphrase")
        for i, item in enumerate(items)
        for kind, question in (
            ("paraphrase", set_ask(item, HELD_FORM)),
            ("new form", held_ask(rng, item)),
            ("as trained", set_ask(item, 1)),
        )
    ]
    declined = [
        replace(probe, id=f"unknown-{i}")
        for i, probe in enumerate(p for p in made.probes if p.kind == "unknown")
    ]
    return replace(made, probes=(*probes, *declined))


def kind_of(probe: Probe) -> str:
    """Which of KINDS a probe is."""
    return probe.id.rpartition("-")[0]
