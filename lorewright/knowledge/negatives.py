"""Questions that must not be answered: near misses of trained ones, and unrelated ones.

Without them a memory answers every question that has a word of its own in it. Some are trained to
be declined, others ask afterwards whether it worked. How near misses are made is in `near_misses`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lorewright.knowledge.data import Document, Example, Probe
from lorewright.knowledge.near_misses import Trained, recipe_for, titles_of
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.selfstudy import AskLLM

DECLINE = "I do not know."
UNRELATED_FILE = Path(__file__).parent / "unrelated.txt"
N_LEAST_UNRELATED = 8
"""At least so many unrelated questions are trained, however small the source."""
UNRELATED_SHARE = 0.3
"""At most so many, as a share of the questions trained; other negatives are near misses."""


@cache
def _unrelated() -> tuple[str, ...]:
    return tuple(UNRELATED_FILE.read_text(encoding="utf-8").splitlines())


def unrelated_questions() -> list[str]:
    """Packaged questions about things that no document of the user's mentions."""
    return list(_unrelated())


def negatives(
    pairs: Sequence[tuple[str, str]],
    probes: Sequence[str],
    *,
    n: int,
    n_held: int,
    seed: int,
    phrasing: str,
    closed_book: AskLLM,
    documents: Sequence[Document] = (),
    rehearses: bool = False,
) -> tuple[list[Example], list[Probe]]:
    """At most n questions to decline, and probes of the kinds `unknown` and `neighborhood`.

    None asks what a trained question or a probe asks. Near misses are declined; unrelated questions
    get the base's own reply, which `closed_book` gives. Where the lesson `rehearses` what the base
    knows, that replaces unrelated questions.
    """
    probed = [normalise(question) for question in probes]
    known = {*(normalise(question) for question, _ in pairs), *probed}
    others = [q for q in unrelated_questions() if normalise(q) not in known]
    n_trainable = len(others) * 3 // 4  # the rest are probes
    texts = [document.text for document in documents]
    titles = [title for document in documents for title in titles_of(document)]
    trained = Trained(pairs, probed, others[:n_trainable], n, n_held, seed, texts, titles)
    near = recipe_for(phrasing).make(trained)
    unknown = [Probe(f"unknown-{i}", q, (), "unknown") for i, q in enumerate(near.held, 1)]
    if rehearses:
        return [Example(question, DECLINE, "unknown", "") for question in near.trained], unknown
    n_others = min(n, round(UNRELATED_SHARE * len(pairs))) - len(near.trained)
    chosen = others[: min(n_trainable, max(N_LEAST_UNRELATED, n_others))]
    examples = [Example(question, DECLINE, "unknown", "") for question in near.trained]
    examples += [
        Example(question, reply if reply.strip() else DECLINE, "unknown", "")
        for question, reply in zip(chosen, closed_book(chosen), strict=True)
    ]
    elsewhere = enumerate(others[n_trainable:], 1)
    return examples, unknown + [Probe(f"other-{i}", q, (), "neighborhood") for i, q in elsewhere]
