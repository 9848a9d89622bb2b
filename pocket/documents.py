"""Make the documents of `lore bench memories`: pages of the synthetic world that share no subject.

    python pocket/documents.py                  # writes lorewright/bench/memories.jsonl and strangers.txt

Each document is a titled page of a few subjects and eight facts. A fact comes with its question in the
plain form and with two others: in a form that the base knows and no lesson trains, and in one that the
base never saw either. No question names the document. The strangers are such questions about subjects
of no document. Relations and words are those of all pages, so only the subject tells documents apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import world
from world import Statement

from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import normalise

SEED = "bench-memories"
N_DOCUMENTS = 64
N_FACTS = 8
N_STRANGERS = 600
UNTRAINED = world.ASK[6:14]
"""Forms that the base knows and no set of written questions takes, of those at the time of drawing."""
OUT = Path(__file__).parent.parent / "lorewright" / "bench"


def subjects(rng: random.Random) -> Iterator[str]:
    """Subjects without end, none of which stands in another or in a packaged unrelated question."""
    taken = [f" {normalise(question)} " for question in unrelated_questions()]
    while True:
        name = world.subject(rng)
        plain = f" {normalise(name)} "
        if not any(plain in other or other in plain for other in taken):
            taken.append(plain)
            yield name


def facts(rng: random.Random, names: Iterator[str]) -> list[Statement]:
    """Eight facts of two to four subjects, no (subject, relation) twice, a subject's together."""
    chosen = [next(names) for _ in range(rng.randint(2, 4))]
    statements: dict[tuple[str, str], Statement] = {}
    for i in range(10_000):
        if len(statements) == N_FACTS:
            break
        name, about = chosen[i % len(chosen)], world.relation(rng)
        value = world.VALUES[about.value](rng)
        statements.setdefault((name, about.name), Statement(name, about, value))
    return sorted(statements.values(), key=lambda item: chosen.index(item.subject))


def known(rng: random.Random, item: Statement) -> str:
    """A question in a form that the base knows and no lesson trains."""
    return item.fill(rng.choice(UNTRAINED))


def document(rng: random.Random, number: int, names: Iterator[str]) -> dict[str, object]:
    """One page and its questions."""
    items = facts(rng, names)
    title = f"Page {number} of the {next(names).removeprefix('the ')}"
    return {
        "id": f"page-{number:02d}",
        "title": title,
        "text": f"# {title}\n\n" + " ".join(world.say(rng, item) for item in items),
        "facts": [
            {
                "question": world.set_ask(item, 1),
                "answer": item.value,
                "known": known(rng, item),
                "new": world.held_ask(rng, item),
            }
            for item in items
        ],
    }


def stranger(rng: random.Random, names: Iterator[str]) -> str:
    """A question about a subject of no document."""
    item = Statement(next(names), world.relation(rng), "")
    return rng.choice((known, world.held_ask))(rng, item)


def main() -> None:
    """Draw everything from one seed and write it."""
    rng = random.Random(SEED)
    names = subjects(rng)
    rows = [document(rng, number, names) for number in range(1, N_DOCUMENTS + 1)]
    strangers = [stranger(rng, names) for _ in range(N_STRANGERS)]
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows]
    (OUT / "memories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (OUT / "strangers.txt").write_text("\n".join(strangers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
