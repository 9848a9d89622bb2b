"""Precision and recall of the search for contradictions between two memories.

    python benchmarks/contradictions.py
    python benchmarks/contradictions.py --quick

Pages of the embedded base's world (pocket/world.py). One memory holds a page's facts; the other holds, a
third each, the same facts with another value (contradictions), the same facts (agreements), and facts of
the page's own subjects and relations that the page does not state (near misses, the hardest
negatives). Questions of both are in forms drawn at random, so that questions seldom agree word for word; `reversed`
asks for the subject by the value. The share of terms from which questions count as nearly equal is chosen
on the even pages: the least with precision 0.95 or more there; all figures are of the odd pages. The last
line can be read by a script.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ratio import options

from lorewright.memory.contradictions import NEAR, Contradiction, Statement, contradictions
from lorewright.recall.statistics import wilson

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pocket"))
import world

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
WANTED = 0.95


@dataclass(frozen=True)
class Pages:
    """Two memories and the questions of the second that contradict the first."""

    statements: list[Statement]
    wrong: set[str]
    reversed_wrong: set[str]


def question(rng: random.Random, item: world.Statement) -> str:
    """A question in any form, also those that the base never read."""
    return world.held_ask(rng, item) if rng.random() < 0.3 else world.ask(rng, item)


def reversed_ask(item: world.Statement) -> str:
    """Which subject has the value?"""
    return f"What has the {item.relation.name} {item.value}?"


def pages(seed: int, n: int) -> Pages:
    """One page and its counterpart."""
    rng = random.Random(f"contradictions-{seed}")
    page = world.passage(rng, n)
    facts = list(page.statements)
    rng.shuffle(facts)
    statements = [Statement("a", question(rng, f), (f.value,), "fact") for f in facts]
    wrong, reversed_wrong, stated = set(), set(), {(f.subject, f.relation.name) for f in facts}
    for i, fact in enumerate(facts):
        if i % 3 == 0:
            value = other_value(rng, fact)
            text = question(rng, fact)
            wrong.add(text)
            statements.append(Statement("b", text, (value,), "fact"))
            text = reversed_ask(fact)
            reversed_wrong.add(text)
            statements.append(Statement("c", text, (world.subject(rng),), "fact"))
        elif i % 3 == 1:
            statements.append(Statement("b", question(rng, fact), (fact.value,), "fact"))
            statements.append(Statement("c", reversed_ask(fact), (fact.subject,), "fact"))
        else:
            miss = world.near_miss(rng, page)
            if (miss.subject, miss.relation.name) not in stated:
                stated.add((miss.subject, miss.relation.name))
                statements.append(
                    Statement("b", question(rng, miss), (other_value(rng, miss),), "fact")
                )
    return Pages(statements, wrong, reversed_wrong)


def other_value(rng: random.Random, fact: world.Statement) -> str:
    """Another value of the same type."""
    draw = world.VALUES[fact.relation.value]
    return next(v for v in iter(lambda: draw(rng), None) if v != fact.value)


def counts_in(every: list[Pages], near: float) -> dict[str, tuple[int, int, int]]:
    """Per kind: contradictions reported, of them right, and how many there are."""
    counts = {kind: [0, 0, 0] for kind in ("same or near", "reversed")}
    for each in every:
        counts["same or near"][2] += len(each.wrong)
        counts["reversed"][2] += len(each.reversed_wrong)
        reported = {"same or near": set(), "reversed": set()}
        for c in contradictions(each.statements, near=near):
            kind = "reversed" if c.kind == "reversed" else "same or near"
            reported[kind].add(question_of(c))
        for kind, right in (("same or near", each.wrong), ("reversed", each.reversed_wrong)):
            counts[kind][0] += len(reported[kind])
            counts[kind][1] += len(reported[kind] & right)
    return {kind: (a, b, c) for kind, (a, b, c) in counts.items()}


def question_of(c: Contradiction) -> str:
    """The question of the memory that is not the page's."""
    return c.second.question if c.first.memory == "a" else c.first.question


def lines(counts: dict[str, tuple[int, int, int]]) -> Iterator[str]:
    """Precision and recall with intervals."""
    for kind, (n_reported, n_right, n_there) in counts.items():
        yield f"{kind}: precision {wilson(n_right, n_reported)}, recall {wilson(n_right, n_there)}"


def main() -> None:
    """Choose on even pages, measure on odd ones, print."""
    parser = options(__doc__, quick="8 pages instead of 80")
    parser.add_argument("--facts", type=int, default=24, help="of a page")
    args = parser.parse_args()
    every = [pages(seed, args.facts) for seed in range(8 if args.quick else 80)]
    even, odd = every[::2], every[1::2]
    print(f"{len(every)} pages of {args.facts} facts; the share is chosen on {len(even)}")
    chosen = None
    for near in THRESHOLDS:
        n_reported, n_right, n_there = counts_in(even, near)["same or near"]
        precision = n_right / n_reported if n_reported else 1.0
        print(f"  even, near {near:.2f}: precision {precision:.3f}, recall {n_right / n_there:.3f}")
        if chosen is None and precision >= WANTED:
            chosen = near
    shown = [("equal questions only", 1.0), (f"default near {NEAR}", NEAR)]
    if chosen is not None and chosen != NEAR:
        shown.append((f"chosen near {chosen}", chosen))
    for what, near in shown:
        counts = counts_in(odd, near)
        for line in lines(counts):
            print(f"odd, {what}: {line}")
    n_reported, n_right, n_there = counts_in(odd, NEAR)["same or near"]
    print(
        f"contradictions near={NEAR} precision={n_right / max(1, n_reported):.3f} recall={n_right / n_there:.3f} n={n_there} chosen={chosen}"
    )


if __name__ == "__main__":
    main()
